"""The answer benchmark, run for real on a small shape: every tier is timed, and its last line says all."""

import json
import sys
from pathlib import Path

import pytest
from family_setup import Setup

from jobs.benchmark.answer import bench_answer
from sttm.models import shapes


@pytest.mark.parametrize("has_decoder", [True, False])
def test_every_way_to_a_first_token_is_timed(
    has_decoder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = Setup.of("qwen2_vl")
    monkeypatch.setitem(shapes.SHAPES, "small", lambda: (setup.family.config, setup.family.processor))
    if not has_decoder:
        monkeypatch.setitem(sys.modules, "av", None)
    bench_answer("small", frames=4, questions=3, question_tokens=5, answer_tokens=3, repeats=1, store=tmp_path)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["again"]["decode_s"] is not None) == has_decoder
    assert all(report["first_token"][f"{tier}_s"] > 0 for tier in ("disk", "store", "host", "device"))
    (stored,) = tmp_path.glob("kv/**/kv.safetensors")
    assert stored.stat().st_size == report["first_token"]["bytes"]
    assert report["tokens"][1] < report["tokens"][0]
    assert report["together"]["throughput_ratio"] > 0
    assert [(step["rows"], step["capture_s"]) for step in report["steps"]] == [(1, 0.0), (3, 0.0)]
