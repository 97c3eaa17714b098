"""The times at which frames are sampled, and what `Frames` accepts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttm.video.frames import Frames, sample_times, sampling_clock


def test_sample_times_examples():
    assert sample_times(0, 3.5, fps=1, max_frames=8).tolist() == [0, 1, 2, 3]
    assert sample_times(2, 4, fps=1, max_frames=8).tolist() == [2, 3, 4]
    np.testing.assert_allclose(sample_times(0, 9.9, fps=1, max_frames=4), [0, 3.3, 6.6, 9.9])
    np.testing.assert_allclose(sample_times(0, 0.9, fps=1, max_frames=8, min_frames=4), [0, 0.3, 0.6, 0.9])
    assert sample_times(5, 5, fps=1, max_frames=1).tolist() == [5]
    assert len(sample_times(0, 119.96, fps=1, max_frames=128)) == 120


@given(st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0.01, 60), st.integers(1, 200), st.integers(1, 8))
def test_sample_times_properties(start, span, fps, max_frames, min_frames):
    end = start + span
    times = sample_times(start, end, fps, max_frames, min_frames)
    assert 1 <= len(times) <= max_frames
    assert len(times) >= min(min_frames, max_frames)
    assert times[0] == start
    assert times[-1] <= end + 1e-6
    assert (np.diff(times) >= 0).all()
    if min_frames < len(times) < max_frames:
        np.testing.assert_allclose(np.diff(times), 1 / fps, rtol=1e-3)
        assert end - times[-1] < 1 / fps + 1e-5
    if len(times) == max_frames > 1 and span * fps > max_frames:
        assert times[-1] == pytest.approx(end)


def test_the_sampling_clock_stands_still_in_long_gaps_only():
    steady = np.arange(100) / 10
    assert sampling_clock(steady, fps=10, max_frames=16) is steady  # no gap
    late = np.append(steady, 3600.0)
    assert sampling_clock(late, fps=0.01, max_frames=128) is late  # all samples fit
    clock = sampling_clock(late, fps=10, max_frames=16)
    assert np.array_equal(clock[:100], steady)
    assert clock[100] - clock[99] == pytest.approx(9.9 / 14)
    slides = np.arange(100) * 60.0
    assert sampling_clock(slides, fps=1, max_frames=16) is slides  # one frame a minute is no gap
    assert sampling_clock(np.array([0.0]), fps=1, max_frames=8).tolist() == [0]


def test_frames_refuse_what_does_not_fit():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    for bad in ([0.0], [0.0, 0.0], [1.0, 0.5]):
        with pytest.raises(ValueError, match="increasing"):
            Frames(pixels, np.array(bad), 1.0, "", 1, "")
    with pytest.raises(ValueError, match="uint8"):
        Frames(pixels.astype(np.float32), np.array([0.0, 1.0]), 1.0, "", 1, "")
