"""Runs of packets whose clocks do not fit together are put one behind the other."""

import numpy as np

from sttm.video.timeline import HIDDEN, continued


def times_after(pts: list[int], part: list[int] | None = None, is_broadcast: bool = True) -> list[int]:
    """The continued times of packets at 10 frames a second, with ticks of 1 ms, in decoding order."""
    stamps = np.array(pts, np.int64)
    parts = np.array(part or [0] * len(pts), np.int64)
    timeline = continued(stamps, stamps, parts, tick_s=1e-3, is_broadcast=is_broadcast)
    return (stamps + timeline.shift).tolist()


def test_a_clock_that_goes_on_is_left_alone():
    assert times_after([0, 100, 200, 350]) == [0, 100, 200, 350]
    assert times_after([0, 100, 5000, 5100]) == [0, 100, 5000, 5100]


def test_a_clock_set_back_goes_on_from_the_last_frame():
    assert times_after([5000, 5100, 5200, 0, 100]) == [5000, 5100, 5200, 5300, 5400]
    assert times_after([*range(0, 1000, 100)] * 3) == [*range(0, 3000, 100)]


def test_a_jump_ahead_is_a_new_clock_in_broadcasts_only():
    assert times_after([0, 100, 90_000, 90_100]) == [0, 100, 200, 300]
    assert times_after([0, 100, 90_000, 90_100], is_broadcast=False) == [0, 100, 90_000, 90_100]


def test_a_stream_that_keeps_the_clock_keeps_its_times():
    assert times_after([0, 100, 500, 600], part=[0, 0, 1, 1]) == [0, 100, 500, 600]
    assert times_after([0, 100, 100, 200], part=[0, 0, 1, 1]) == [0, 100, 200, 300]


def test_packets_without_times_belong_to_the_run_around_them():
    pts = np.array([5000, HIDDEN, 5200, 0, HIDDEN, 100], np.int64)
    timeline = continued(pts, pts, np.zeros(6, np.int64), tick_s=1e-3, is_broadcast=True)
    assert timeline.run.tolist() == [0, 0, 0, 1, 1, 1]
    assert timeline.joins == 1
