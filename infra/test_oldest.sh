#!/usr/bin/env bash
# Runs the tests of engine and models on the oldest supported transformers; arguments go to pytest.
# That version is laid over .venv (15 s, no second torch). Where versions differ: sttm/models/llava.py (names and shapes
# of video features) and sttm/models/qwen2_vl.py, which calls the tower itself and so sees no difference.
set -euo pipefail
cd "$(dirname "$0")/.."
bash infra/setup.sh
version="$(sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml).0"
overlay=".venv/transformers-$version"
[ -d "$overlay/transformers" ] || .venv/bin/python -m pip install -q --target "$overlay" "transformers==$version"
export PYTHONPATH="$overlay"
.venv/bin/python -c "import transformers; assert transformers.__version__ == '$version', transformers.__version__"
.venv/bin/python -m pytest tests/test_engine.py tests/test_models_*.py "$@"
