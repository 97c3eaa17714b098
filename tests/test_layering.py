"""The architecture, kept by a test: who may import whom, and which door each heavy dependency comes through."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("sttm/**/*.py"), *ROOT.glob("jobs/**/*.py")])

DOORS = {
    "decord": {"sttm/video/decode.py", "sttm/video/file.py", "sttm/video/index.py"},
    "av": {
        *("sttm/video/decode.py", "sttm/video/file.py", "sttm/video/index.py"),
        *("sttm/synthetic/encode.py", "jobs/benchmark/film.py"),
    },
    "fsspec": {"sttm/store/storage.py", "sttm/corpus.py", "sttm/urls.py"},
    "pyarrow": {
        *("sttm/store/tokens.py", "sttm/store/catalog/catalog.py", "sttm/store/catalog/row.py"),
        "jobs/answering/answer_table.py",
        *("sttm/corpus.py", "sttm/evaluation/rows.py"),
    },
}
# A package may import those to its right, and itself.
LAYERS = (
    "jobs",
    "sttm.evaluation",
    "sttm.indexer",
    "sttm.config",
    "sttm.engine",
    "sttm.store",
    "sttm.models",
    "sttm.merging",
)


def imports(path: Path) -> set[str]:
    """Full names of all modules a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(module: str) -> int | None:
    return next((i for i, name in enumerate(LAYERS) if module == name or module.startswith(name + ".")), None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way_and_through_the_doors(path: Path) -> None:
    own = str(path.relative_to(ROOT))
    found = imports(path)
    tops = {name.split(".")[0] for name in found}
    if own.startswith("sttm/"):
        assert "ray" not in tops, "sttm/ never imports ray"
        assert "jobs" not in tops
    for package, doors in DOORS.items():
        assert package not in tops or own in doors, f"{package} has one door: {doors}"
    here = layer(own.removesuffix(".py").replace("/", "."))
    for name in found:
        there = layer(name)
        assert here is None or there is None or there >= here, f"{own} imports {name}, which lies above it"


def test_asking_imports_neither_ray_nor_a_decoder(qwen2_vl_folder: Path) -> None:
    """In a fresh process, everything that answering a question loads."""
    code = f"""
import sys
import jobs.ask
from sttm.models.checkpoint import Checkpoint, ModelConfig
checkpoint = Checkpoint.open(ModelConfig(path={str(qwen2_vl_folder)!r}, dtype="float32"))
model = checkpoint.load_language_model("cpu")
checkpoint.family(with_processor=False).question_ids("Why?")
assert not any("vis" in name for name, _ in model.text.named_parameters())
print(*sorted(m for m in ("ray", "decord", "av", "pyarrow.dataset") if m in sys.modules))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == ""
