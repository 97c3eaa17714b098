#!/usr/bin/env bash
# The measurements behind sttm/evaluation/FINDINGS.md (80 videos) and the prefill tables of jobs/benchmark/RESULTS.md, on a
# machine with one GPU: accuracy sweeps side by side, then timings.
# Usage: infra/gpu_findings.sh OUT_FOLDER [VIDEOS]
set -euo pipefail
cd "$(dirname "$0")/.."
out="$1" videos="${2:-100}" python="${PYTHON:-python3}"
p="proportional_attention=true" plain="proportional_attention=false" half="spatial_share=0.5"
mkdir -p "$out"
declare -A sweeps=(
  [layers]="sttm[$plain,$half],sttm[$p,$half],sttm[$p,$half,merge_layer=0],sttm[$p,$half,merge_layer=1],sttm[$p,$half,merge_layer=3],sttm[$p,$half,merge_layer=4]"
  [shares]="sttm[$p,spatial_share=0.25],sttm[$p,spatial_share=0.75],sttm[$p,spatial_share=1],sttm[$p,merge_layer=3,spatial_share=0.75],sttm[$p,merge_layer=4,spatial_share=0.75],sttm[$p,merge_layer=3,spatial_share=1]"
  [variants]="sttm[$p,$half,links=all],sttm[$p,$half,weighted=false],sttm[$p,$half,variant=reference],sttm[$p,$half,position_rule=reassigned],sttm[$p,$half,position_rule=merged],sttm[$plain,$half,merge_layer=4]"
  [peers]="tome[$plain],tome[$p],tome_frame[$plain],tome_frame[$p],dycoke[$plain],dycoke[$p]"
  [more_peers]="uniform[$plain],pooling[$plain],pooling[$p],random[$plain],random[$p],octree[$plain],octree[$p]"
  [schemes]="sttm[$p,$half,kv_scheme=int8],sttm[$p,$half,kv_scheme=k8v4],sttm[$p,$half,kv_scheme=int4],sttm[$p,$half,merge_layer=4,kv_scheme=int8],sttm[$plain,$half,merge_layer=0],sttm[$p,merge_layer=4,spatial_share=1]"
)
for name in "${!sweeps[@]}"; do
  OMP_NUM_THREADS=2 timeout "${SWEEP_SECONDS:-280}" "$python" -m jobs.evaluate --benchmark synthetic --limit "$videos" --reducers "${sweeps[$name]}" \
    --budgets 0.5,0.3 --out "/tmp/findings/$name" >"$out/$name.log" 2>&1 &
done
wait # a sweep that failed says so below
for name in "${!sweeps[@]}"; do echo "== $name"; grep '^|' "$out/$name.log" | cut -c1-118 || tail -3 "$out/$name.log"; done
for shape in llava-video-7b qwen2-vl-7b; do
  timeout 110 "$python" -m jobs.bench prefill --shape "$shape" 2>&1 | tee "$out/bench-$shape.log" | tail -14 || true
done
