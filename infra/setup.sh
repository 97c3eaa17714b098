#!/usr/bin/env bash
# Makes .venv with everything the project and its tests need. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$python" -m venv .venv
# Any torch >= 2.11 works; this pair is the one the tests run on, pinned so that a bare machine gets no surprise.
.venv/bin/python -m pip install -q torch==2.13.0 torchvision==0.28.0
.venv/bin/python -m pip install -q -e '.[s3,serve,test]'
