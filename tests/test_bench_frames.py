"""The benchmark of frames, run on two short videos: it compares both ways, and counts what need not be encoded."""

import json
from pathlib import Path

import pytest

from jobs.benchmark.frames import bench_frames
from jobs.benchmark.still_films import STILL_FILMS, encode_still_film


@pytest.mark.slow
def test_both_ways_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slides.mp4").write_bytes(encode_still_film("slides", seconds=6))
    bench_frames([tmp_path / "slides.mp4"], fps=2.0, max_frames=12)
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["videos"]
    assert (row["video"], row["frames"]) == ("slides.mp4", 12)
    assert 0 < row["reused at 0"] <= row["reused at 0.5"] <= row["reused at 2"] < 1
    assert min(row["cpu s before"], row["cpu s now"], row["MB before"], row["MB now"]) > 0


def test_generated_films_are_made_the_same_again() -> None:
    for kind in STILL_FILMS:
        assert encode_still_film(kind, seconds=1) == encode_still_film(kind, seconds=1)
