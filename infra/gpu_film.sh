#!/usr/bin/env bash
# The measurements of real film in jobs/benchmark/RESULTS.md, on a machine with one GPU and at least 16 cores.
# Usage: infra/gpu_film.sh FOLDER [STEP...]; the steps are film, decode, pyav, nvdec and auto, by default all of them.
# FOLDER keeps films and weights (about 17 GB, and as much again while copies are indexed). Every line of JSON is added to
# FOLDER/lines.jsonl as soon as it is measured, so a run that is cut off keeps what it has.
set -uo pipefail
cd "$(dirname "$0")/.."
folder="$1" python="${PYTHON:-python3}"
shift
steps=("$@")
[ $# -gt 0 ] || steps=(film decode pyav nvdec auto)
mkdir -p "$folder"
long=720p24-h264:600
films=(720p24-h264 1080p30-h264 1080p30-phone)
kept() { tee -a "$folder/all.log" | grep --line-buffered '^{' | tee -a "$folder/lines.jsonl"; }
bench() { PYTHONPATH="$PWD" timeout "${STEP_SECONDS:-580}" "$python" -m jobs.bench "$@" --folder "$folder" 2>&1 | kept; }
for step in "${steps[@]}"; do
  echo "== $step $(date +%T)"
  case "$step" in
    film)
      PYTHONPATH="$PWD" "$python" -m jobs.bench film "$folder" --film "$long" --film 1080p30-hevc --film 720p24-intra:30 \
        "${films[@]/#/--film=}" 2>&1 | kept
      ;;
    decode) # side by side, one core each
      for film in "${films[@]}" 1080p30-hevc 720p24-intra:30 "$long"; do
        OMP_NUM_THREADS=1 bench decode --film "$film" --repeats "${REPEATS:-2}" &
      done
      wait
      ;;
    pyav | nvdec | auto)
      bench pipeline --config qwen2_vl_7b --shape qwen2-vl-7b --gpus 1 --seconds 15 --set "video.decoder=$step" \
        "${films[@]/#/--film=}"
      ;;
    *)
      echo "no step is named $step; the steps are film, decode, pyav, nvdec and auto" >&2
      exit 1
      ;;
  esac
done
