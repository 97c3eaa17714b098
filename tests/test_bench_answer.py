"""The answer benchmark, run on a small shape: it times every cache tier, and its last line reports everything."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from family_setup import Setup

from jobs.benchmark import shapes
from jobs.benchmark.answer import bench_answer
from jobs.benchmark.film import FILMS, write_films


@pytest.mark.parametrize("has_decoder", [True, False])
def test_every_way_to_a_first_token_is_timed(
    has_decoder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = Setup.of("qwen2_vl")
    monkeypatch.setitem(shapes.SHAPES, "small", lambda: (setup.family.config, setup.family.processor))
    video = tmp_path / "film.mp4"
    write_films({video: replace(FILMS["720p24-h264"], seconds=2, width=320, height=180, bits_per_s=300_000)})
    if not has_decoder:
        monkeypatch.setitem(sys.modules, "av", None)
    sizes = {"frames": 4, "questions": 3, "question_tokens": 5, "answer_tokens": 3, "repeats": 1}
    bench_answer("small", **sizes, store=tmp_path / "store", video=video)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["again"]["decode_s"] is not None) == has_decoder
    assert all(report["first_token"][f"{tier}_s"] > 0 for tier in ("disk", "store", "host", "device"))
    if has_decoder:
        assert report["again"]["decode_of"].startswith("2 s of 320x180 h264 at 24 frames/s, 0.")
    again, first, ratios = report["again"], report["first_token"], report["speed_up"]
    seconds = again["vision_s"] + again["full_prefill_and_question_s"]
    assert ratios["host_over_full_without_decoding"] == pytest.approx(seconds / first["host_s"])
    if has_decoder:
        assert ratios["host_over_full"] == pytest.approx((seconds + again["decode_s"]) / first["host_s"])
    assert len(ratios) == (16 if has_decoder else 8)
    (stored,) = tmp_path.glob("store/kv/**/kv.safetensors")
    assert stored.stat().st_size == report["first_token"]["bytes"]
    assert report["tokens"][1] < report["tokens"][0]
    assert report["together"]["throughput_ratio"] > 0
    assert [(step["rows"], step["capture_s"]) for step in report["steps"]] == [(1, 0.0), (3, 0.0)]
