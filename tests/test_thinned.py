"""A video is thinned if `video.max_frames` leaves out frames that `video.fps` asks for; all that is shown says so."""

import contextlib
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import TROUBLE, encode_video, flipped

import sttm
from jobs import store as store_commands
from jobs.explain import explain
from jobs.indexing.dry_run import print_plan
from jobs.indexing.launch import Launch
from jobs.indexing.results import print_results
from jobs.indexing.run_record import RunRecord
from sttm.corpus.listing import list_corpus
from sttm.errors import VideoError
from sttm.index_plan import Plan, make_plan
from sttm.store.catalog.frame_counts import FrameCounts, enough_frames, low_enough_fps
from sttm.store.catalog.row import CatalogRow
from sttm.store.store import Store
from sttm.video.decode import VideoConfig, read_video
from sttm.video.frames import Frames, frames_at_rate, sample_times, sampling_clock

EARLY_S = 1e-3


def shown(seconds: np.ndarray, times: np.ndarray) -> set[int]:
    """Which frames are on the screen at these times, looked up one by one."""
    return {max(i for i, start in enumerate(seconds) if start <= time + EARLY_S) for time in times}


@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=60),
    st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.7, 25.0]),
    st.integers(1, 40),
    st.integers(1, 8),
)
def test_frames_at_the_rate_are_those_on_screen_at_its_times(
    steps_ms: list[int], fps: float, max_frames: int, min_frames: int
) -> None:
    seconds = np.cumsum([0, *steps_ms]) / 1000
    end = float(seconds[-1])
    at_rate = shown(seconds, np.arange(math.floor(end * fps + 1e-6) + 1) / fps)
    picked = shown(seconds, sample_times(0.0, end, fps, max_frames, min(min_frames, max_frames)))
    asked, left_out = frames_at_rate(seconds, fps, max_frames, len(picked), EARLY_S)
    assert asked == pytest.approx(len(at_rate), abs=1 if len(at_rate) > max_frames else 0)
    assert left_out in (0, asked - len(picked))
    if (end + 1e-3) * fps <= max_frames:
        assert left_out == 0
    elif len(picked) < asked and math.floor(end * fps + 1e-6) >= max_frames:
        assert left_out > 0


def test_a_wild_time_stamp_costs_no_memory() -> None:
    assert frames_at_rate(np.array([0.0, 1.0, 1e12]), 1000.0, 8, 2, EARLY_S) == (3, 1)


def read(folder: Path, data: bytes, **settings: float) -> Frames:
    path = folder / "v.mp4"
    path.write_bytes(data)
    return read_video(str(path), VideoConfig(**settings))


@pytest.mark.parametrize("rate", [1, 5, 24])
@pytest.mark.parametrize("count", [1, 2, 25, 130])
def test_real_video_is_thinned_just_where_the_cap_takes_frames_away(tmp_path: Path, rate: int, count: int) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(encode_video(count=count, rate=rate))
    for fps in (0.5, 1.0, 4.0, 30.0):
        for max_frames in (1, 3, 16, 128):
            frames = read_video(str(path), VideoConfig(fps=fps, max_frames=max_frames))
            free = read_video(str(path), VideoConfig(fps=fps, max_frames=100_000))
            case = f"{fps=} {max_frames=}: {frames.asked} asked, {frames.left_out} left out"
            assert (frames.asked, free.left_out) == (len(free.pixels), 0), case
            assert frames.left_out == len(free.pixels) - len(frames.pixels), case
            if frames.duration_s * fps <= max_frames:
                assert frames.left_out == 0, case


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    st.integers(30_000, 4_000_000),
    st.lists(st.integers(1, 1000), max_size=30),
    st.sampled_from([0.1, 1.0, 2.0, 3.7]),
)
def test_a_gap_without_frames_does_not_make_a_video_thinned(
    before_ms: list[int], gap_ms: int, after_ms: list[int], fps: float
) -> None:
    seconds = np.cumsum([0, *before_ms, gap_ms, *after_ms]) / 1000
    clock = sampling_clock(seconds, fps, 300)
    picked = shown(clock, sample_times(0.0, float(clock[-1]), fps, 300))
    asked, left_out = frames_at_rate(seconds, fps, 300, len(picked), EARLY_S)
    assert left_out == 0
    assert len(picked) == pytest.approx(asked, abs=1), "a sample may fall on the very end"


def test_a_single_late_frame_does_not_make_a_video_thinned() -> None:
    frames = read_video(str(TROUBLE / "outlier_last.mp4"), VideoConfig())
    assert (len(frames.pixels), frames.asked, frames.left_out) == (62, 62, 0)
    assert frames.seconds[-1] == pytest.approx(10_800)


def test_a_film_of_forty_minutes_has_one_frame_in_160_s(tmp_path: Path) -> None:
    frames = read(tmp_path, encode_video(count=2400, rate=1), fps=1.0, max_frames=15)
    assert (len(frames.pixels), frames.asked, frames.left_out) == (15, 2400, 2385)
    assert frames.duration_s / len(frames.pixels) == pytest.approx(160)


def test_a_slow_video_with_all_its_frames_taken_is_not_thinned(tmp_path: Path) -> None:
    frames = read(tmp_path, encode_video(ticks_ms=range(0, 1_200_000, 30_000)), fps=1.0, max_frames=128)
    assert (len(frames.pixels), frames.asked, frames.left_out) == (40, 40, 0)
    crowded = [*range(0, 40_000, 1000), *range(40_000, 1_200_001, 20_000)]  # 40 frames in 40 s, then 59 in 20 minutes
    frames = read(tmp_path, encode_video(ticks_ms=crowded), fps=1.0, max_frames=128)
    assert frames.asked == 99, "fewer than max_frames, but samples that are 9 s apart miss most of the first forty"
    assert 30 < frames.left_out == 99 - len(frames.pixels)


def test_frames_lost_through_damage_do_not_make_a_video_thinned(tmp_path: Path) -> None:
    lost = 0
    for seed in range(12):
        data = flipped(encode_video(count=120, rate=10, gop=5), seed, count=40, start_ratio=0.3)
        with contextlib.suppress(VideoError):
            frames = read(tmp_path, data, fps=10.0, max_frames=128)
            assert frames.left_out == 0
            assert frames.asked >= len(frames.pixels)
            lost += frames.asked - len(frames.pixels)
    assert lost > 0, "the test needs videos with lost frames"


def test_more_frames_than_the_rate_asks_for_are_no_thinning(tmp_path: Path) -> None:
    frames = read(tmp_path, encode_video(count=20, rate=10), fps=1.0, min_frames=8)
    assert (len(frames.pixels), frames.asked, frames.left_out) == (8, 2, 0)


@given(st.floats(0.5, 1e5), st.sampled_from([0.1, 1.0, 2.0, 29.97]), st.integers(1, 500))
def test_both_cures_leave_out_nothing(duration_s: float, fps: float, max_frames: int) -> None:
    last = duration_s - 1e-3
    most = enough_frames(duration_s, fps)
    assert len(sample_times(0.0, last, fps, 10**9)) <= most
    assert len(sample_times(0.0, last, float(low_enough_fps(duration_s, max_frames)), 10**9)) <= max_frames


FILES = {
    "long.mp4": {"count": 40, "rate": 1},
    "short.mp4": {"count": 3, "rate": 1},
    "slow.mp4": {"ticks_ms": [0, 20_000, 40_000]},
}
SETTINGS = ["video.fps=1.0", "video.max_frames=5"]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[CatalogRow], list[str]]:
    """Corpus, store, rows and warnings of a thinned video, a short one, and a slow one."""
    folder = tmp_path_factory.mktemp("thinned")
    corpus, store, warnings = folder / "corpus", str(folder / "store"), []
    corpus.mkdir()
    for name, settings in FILES.items():
        (corpus / name).write_bytes(encode_video(**settings))  # type: ignore[arg-type]
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    handler.setLevel(logging.WARNING)
    logging.getLogger("sttm").addHandler(handler)
    rows = sttm.index(corpus, store, overrides=SETTINGS)
    logging.getLogger("sttm").removeHandler(handler)
    return corpus, store, rows, warnings


Indexed = tuple[Path, str, list[CatalogRow], list[str]]


def test_rows_manifest_and_archive_have_the_numbers(indexed: Indexed) -> None:
    _, url, rows, warnings = indexed
    counts = [(row.frames, row.frames_asked, row.frames_left_out, row.is_thinned) for row in rows]
    assert counts == [(5, 40, 35, True), (3, 3, 0, False), (3, 3, 0, False)]
    assert rows[0].seconds_per_frame == pytest.approx(8.0)
    store = Store.open(url)
    assert [replace(row, created_at="") for row in store.catalog.rows()] == [replace(r, created_at="") for r in rows]
    assert {row.name: row.frames_asked for row in sttm.open(url).videos()} == dict(zip(FILES, (40, 3, 3), strict=True))
    sampling = store.manifest(rows[0].identity).facts.sampling
    assert (len(sampling.seconds), sampling.frames_asked, sampling.frames_left_out) == (5, 40, 35)
    assert any("1 of 3 videos is thinned" in text and "video.max_frames=40" in text for text in warnings)


def test_rows_of_older_programs_read_as_unknown() -> None:
    golden = Store.open(Path(__file__).parent / "data" / "golden_v1" / "store")
    for row in golden.catalog.rows():
        assert (row.frames, row.frames_asked, row.is_thinned, row.seconds_per_frame) == (0, 0, False, None)


@pytest.mark.parametrize("cure", ["video.max_frames", "video.fps"])
def test_the_settings_that_the_cure_names_thin_nothing(indexed: Indexed, cure: str) -> None:
    corpus, url, rows, _ = indexed
    counts = FrameCounts()
    for row in rows:
        counts.add(row)
    said = counts.cure(Store.open(url).manifest(rows[0].identity).recipe)
    value = said.split(f"--set {cure}=")[1].split()[0]
    settings = {"fps": 1.0, "max_frames": 5, cure.removeprefix("video."): float(value)}
    for name in FILES:
        assert read_video(str(corpus / name), VideoConfig(**settings)).left_out == 0
    assert f"about {35 * rows[0].tokens_before / 5:,.0f} more visual tokens" in said


def test_progress_record_log_and_closing_table_say_it(
    indexed: Indexed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, url, rows, _ = indexed
    refs = list_corpus(str(corpus))
    recipe = Store.open(url).manifest(rows[0].identity).recipe
    launch = Launch(["sttm", "index"], "/", {}, "clips/", "store/", {}, "host", {}, "2026-01-01T00:00:00+00:00")
    record = RunRecord(Store.open(tmp_path, create=True), recipe, rows[0].run_id, Plan(refs), launch)
    record.begin()
    record.__dict__["_metrics"] = _NoMetrics()
    for ref, row in zip(refs, rows, strict=True):
        record.stored(ref, row)
    record.end("finished")
    line = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (line["frames"], line["frames_asked"], line["seconds_per_frame"], line["thinned"]) == (5, 40, 8.0, True)
    assert line["duration_s"] == pytest.approx(40.0)
    assert "11 frames of 46 asked for, one in " in record.progress.line()
    assert "  1 thinned  " in record.progress.line()
    print_results(record, was_stopped=False)
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    counts = ("frames", "frames_asked", "frames_left_out", "thinned")
    assert [summary[name] for name in counts] == [11, 46, 35, 1]
    assert summary["seconds_per_frame"] == pytest.approx(sum(row.duration_s for row in rows) / 11, abs=1e-3)
    written = json.loads(record.store.storage.read(f"runs/{rows[0].run_id}.json"))
    assert [written[name] for name in counts] == [11, 46, 35, 1]
    assert "1 of 3 videos is thinned" in out
    assert "long.mp4 has one frame in 8 s" in out
    assert "--set video.max_frames=40 takes them all" in out
    assert "--set video.fps=0.124" in out


class _NoMetrics:
    """Takes the metrics that need Ray."""

    def stored(self, row: CatalogRow) -> None:
        """Does nothing."""


def test_ls_and_explain_say_it(indexed: Indexed, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, url, _, _ = indexed
    store_commands.ls(url)
    lines = {name: line for line in capsys.readouterr().out.splitlines() for name in FILES if name[:-4] + "-" in line}
    assert all(text in lines["long.mp4"] for text in (" 40.0 s ", " 5 of 40, thinned ", " 8 s "))
    assert all(text in lines["short.mp4"] for text in (" 3 of 3 ", " 1 s "))
    assert "thinned" not in lines["short.mp4"] + lines["slow.mp4"]
    store_commands.ls(url, as_json=True)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"]: row["seconds_per_frame"] for row in found}["long.mp4"] == 8.0
    assert explain(str(corpus / "long.mp4"), url, set_=SETTINGS) == 0
    out = capsys.readouterr().out
    assert "frames: 5 of 40, thinned; one in 8 s of 40.0 s" in out
    assert "--set video.max_frames=40" in out
    assert explain(str(corpus / "slow.mp4"), url, set_=SETTINGS) == 0
    assert "frames: 3 of 3; one in " in capsys.readouterr().out


def test_a_dry_run_says_how_many_videos_of_known_length_would_be_thinned(
    indexed: Indexed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, url, rows, _ = indexed
    store = Store.open(url)
    recipe = store.manifest(rows[0].identity).recipe
    wider = {**recipe, "video": {**recipe["video"], "max_frames": 10}}
    (tmp_path / "new.mp4").write_bytes(encode_video(count=60, rate=1))
    refs = [*list_corpus(str(corpus)), *list_corpus(str(tmp_path))]
    print_plan(make_plan(refs, wider, store, retry_errors=False), store, wider, gpus_per_model=1)
    out = capsys.readouterr().out
    assert "2 of the 3 videos whose length is known, of 4, would be thinned" in out, "by length alone: slow.mp4 too"
    plan = json.loads(out.splitlines()[-1])
    assert (plan["length_known"], plan["would_be_thinned"]) == (3, 2)
    print_plan(Plan(refs), None, wider, gpus_per_model=1)
    assert "is not known" in capsys.readouterr().out
