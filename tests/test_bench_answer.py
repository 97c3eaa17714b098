"""The answer benchmark, run on a small shape: it times every cache tier, and its last line reports everything."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from family_setup import Setup

from jobs.benchmark import shapes
from jobs.benchmark.answer import bench_answer
from jobs.benchmark.film import write_film
from sttm.video.decode import VideoConfig, read_video


@pytest.mark.parametrize("has_decoder", [True, False])
def test_every_way_to_a_first_token_is_timed(
    has_decoder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = Setup.of("qwen2_vl")
    monkeypatch.setitem(shapes.SHAPES, "small", lambda: (setup.family.config, setup.family.processor))
    video = tmp_path / "film.mp4"
    write_film(video, seconds=2, width=320, height=180, bits_per_s=300_000)
    if not has_decoder:
        monkeypatch.setitem(sys.modules, "av", None)
    sizes = {"frames": 4, "questions": 3, "question_tokens": 5, "answer_tokens": 3, "repeats": 1}
    bench_answer("small", **sizes, store=tmp_path / "store", video=video)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["again"]["decode_s"] is not None) == has_decoder
    assert all(report["first_token"][f"{tier}_s"] > 0 for tier in ("disk", "store", "host", "device"))
    if has_decoder:
        assert report["again"]["decode_of"].startswith("2 s of 320x180 h264 at 25 frames/s, 0.")
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


def test_a_film_is_an_ordinary_video_that_moves(tmp_path: Path) -> None:
    write_film(tmp_path / "film.mp4", seconds=10, width=320, height=180, fps=25, bits_per_s=300_000)
    assert 0.6 < (tmp_path / "film.mp4").stat().st_size * 8 / 10 / 300_000 < 1.5
    found = read_video(str(tmp_path / "film.mp4"), VideoConfig(fps=1.0))
    assert found.pixels.shape == (10, 180, 320, 3)
    changes = np.abs(np.diff(found.pixels.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert changes.min() > 3  # the camera and the things move, and a new scene begins after 8 s
    assert changes[7] > 2 * np.median(changes[:7])
