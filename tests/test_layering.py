"""The architecture, kept by a test: who may import whom, and which door each heavy dependency comes through."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("sttm/**/*.py"), *ROOT.glob("jobs/**/*.py")])

DOORS = {
    "decord": {"sttm/video/decode.py"},
    "av": {
        *("sttm/video/pyav.py", "sttm/video/segments.py", "sttm/video/nvdec.py"),
        *("sttm/synthetic/encode.py", "jobs/benchmark/film.py", "jobs/benchmark/plain_decode.py"),
    },
    "fsspec": {"sttm/store/storage.py", "sttm/urls.py"},
    "pyarrow": {
        *(
            f"sttm/store/catalog/{name}.py"
            for name in ("arrow_rows", "counting", "generation", "part", "reader", "view")
        ),
        *("sttm/store/tokens.py", "sttm/index_plan.py", "jobs/answering/answer_table.py", "sttm/tables.py"),
    },
}
# A file may import from lines further down, and from its own package. Names in one line know nothing of one another.
LAYERS = (
    ("jobs.__main__",),
    ("jobs.demo",),
    *(
        tuple(f"jobs.{name}" for name in ("answer", "ask", "bench", "evaluate", "explain", "index", "serve", "store")),
        ("jobs.train_tiny",),
    ),
    ("jobs.benchmark", "jobs.training"),
    ("jobs.config",),
    ("jobs.indexing", "jobs.answering", "jobs.serving"),
    ("jobs.cluster", "jobs.command"),
    ("sttm.evaluation",),
    ("sttm.synthetic",),
    ("sttm",),
    ("sttm.archive", "sttm.local_index"),
    ("sttm.index_plan",),
    ("sttm.indexer",),
    ("sttm.config",),
    ("sttm.query",),
    ("sttm.engine", "sttm.store"),
    ("sttm.models",),
    ("sttm.merging", "sttm.kv_cache"),
    ("sttm.video",),
    ("sttm.corpus",),
    ("sttm.tables",),
    ("sttm.urls", "sttm.csv_records", "sttm.gpu", "sttm.stage_clock", "sttm.settings", "sttm.certificate"),
    ("sttm.errors",),
    ("jobs",),
)


def module_of(path: Path) -> str:
    """`sttm/video/__init__.py` -> `sttm.video`."""
    name = str(path.relative_to(ROOT)).removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Full names of all modules a file imports, wherever in it: lazy imports and those of type checkers count."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if name in MODULES}
            names |= {node.module} if inner - MODULES.keys() else set()
    return names


def layer(module: str) -> tuple[int, str] | None:
    """Index of the layer that a module belongs to, and the name in it that covers the module; None if none does."""
    fits = [
        (i, name)
        for i, names in enumerate(LAYERS)
        for name in names
        if module == name or (module.startswith(name + ".") and name not in ("sttm", "jobs"))
    ]
    return fits[0] if fits else None


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
    here = layer(module_of(path))
    assert here is not None, f"{own} has no layer: add it to LAYERS"
    for name in found & MODULES.keys():
        there = layer(name)
        assert there is not None
        assert there[0] > here[0] or there[1] == here[1], f"{own} imports {name}, which does not lie below it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Lazy imports and imports for type checkers are counted, so a circle cannot hide inside a function."""
    arrows = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    while leaves := [name for name, to in arrows.items() if not to & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, "these import one another in a circle, or import such a circle"


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


def test_every_module_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
