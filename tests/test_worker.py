"""The worker's example runs as it is written."""

import textwrap
from pathlib import Path

import pytest
from indexed import index_clips

from sttm.models.checkpoint import BUILT_IN
from sttm.query import worker


def test_the_example_of_the_module_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, indented = (worker.__doc__ or "").partition("\n")
    example = textwrap.dedent(indented)
    store = index_clips(tmp_path, BUILT_IN, count=1)
    assert "clip.mp4" in example
    assert "/data/store" in example
    exec(example.replace("/data/store", store).replace("clip.mp4", "clip-0.mp4"), {})
    assert capsys.readouterr().out.strip()
