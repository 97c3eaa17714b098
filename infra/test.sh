#!/usr/bin/env bash
# Sets up, then lint, types and tests. `infra/test.sh -m slow` runs the slow ones; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash infra/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
