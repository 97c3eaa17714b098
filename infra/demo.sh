#!/usr/bin/env bash
# Sets up, then indexes a small corpus of real encoded video on an embedded Ray and asks questions about it.
set -euo pipefail
cd "$(dirname "$0")/.."
bash infra/setup.sh
exec .venv/bin/python -m jobs.demo "$@"
