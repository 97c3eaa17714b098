"""The documents tell the truth: links lead somewhere, commands exist, every code that a row can have is explained."""

import ast
import re
from pathlib import Path

import pytest

from jobs.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for path in ROOT.glob("**/*.md") if not any(part.startswith(".") for part in path.parts[len(ROOT.parts) :])
)
CODE = [path for top in ("sttm", "jobs") for path in ROOT.glob(f"{top}/**/*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{target} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_commands_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:sttm|jobs|configs|tests|infra)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{name} is not there"
    for command in re.findall(r"(?:^|`|python -m jobs\.|\| )sttm ([a-z_]+)\b", text, re.MULTILINE):
        assert command in COMMANDS, f"sttm {command} is no command"


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_code_of_an_error_row_is_explained_with_its_cure() -> None:
    explained = set(re.findall(r"^\| (`[^|]+`) \|", (ROOT / "jobs" / "README.md").read_text(), re.MULTILINE))
    known = {code for cell in explained for code in re.findall(r"`(\w+)`", cell)}
    assert codes_of_video_errors() - {"changed"} <= known  # `changed`: of the page's frames, never of a row


def codes_of_video_errors() -> set[str]:
    """First arguments of all `VideoError(...)` calls, and the codes that jobs give to rows."""
    found: set[str] = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            is_error = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "VideoError"
            if is_error and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
    assert len(found) > 8
    return found | {"crashed", "lost", "bad_row", "no_video", "bad_question", "bad_artifact", "other_model", "failed"}
