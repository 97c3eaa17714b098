#!/usr/bin/env bash
# The measurements behind the README's tables, on a machine with one GPU: accuracy sweeps side by side, then timings.
# Usage: infra/gpu_findings.sh OUT_FOLDER [VIDEOS]
set -uo pipefail
cd "$(dirname "$0")/.."
out="$1" videos="${2:-100}" python="${PYTHON:-python3}"
p="proportional_attention=true"
declare -A sweeps=(
  [layers]="sttm,sttm[$p],sttm[$p,merge_layer=0],sttm[$p,merge_layer=1],sttm[$p,merge_layer=3],sttm[$p,merge_layer=4]"
  [shares]="sttm[$p,spatial_share=0.25],sttm[$p,spatial_share=0.75],sttm[$p,spatial_share=1],sttm[$p,merge_layer=3,spatial_share=0.75],sttm[$p,merge_layer=4,spatial_share=0.75],sttm[$p,merge_layer=3,spatial_share=1]"
  [variants]="sttm[$p,links=all],sttm[$p,weighted=false],sttm[$p,variant=reference],sttm[$p,position_rule=reassigned],sttm[$p,position_rule=merged],sttm[merge_layer=4]"
  [peers]="tome,tome[$p],tome_frame,tome_frame[$p],dycoke,dycoke[$p]"
  [more_peers]="uniform,pooling,pooling[$p],random,random[$p],octree,octree[$p]"
  [schemes]="sttm[$p,kv_scheme=int8],sttm[$p,kv_scheme=k8v4],sttm[$p,kv_scheme=int4],sttm[$p,merge_layer=4,kv_scheme=int8],sttm[merge_layer=0],sttm[$p,merge_layer=4,spatial_share=1]"
)
for name in "${!sweeps[@]}"; do
  OMP_NUM_THREADS=2 timeout "${SWEEP_SECONDS:-280}" "$python" -m jobs.evaluate --benchmark synthetic --limit "$videos" --reducers "${sweeps[$name]}" \
    --budgets 0.5,0.3 --out "/tmp/findings/$name" >"$out/$name.log" 2>&1 &
done
wait
for name in "${!sweeps[@]}"; do echo "== $name"; grep '^|' "$out/$name.log" | cut -c1-118 || tail -3 "$out/$name.log"; done
for shape in llava-video-7b qwen2-vl-7b; do
  timeout 110 "$python" -m jobs.bench prefill --shape "$shape" 2>&1 | tee "$out/bench-$shape.log" | tail -14
done
