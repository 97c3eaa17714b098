"""Sampling by key frames: a key frame near a sampled frame is taken in its place, because it can be decoded alone."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sttm.video.coded_picture import Entry
from sttm.video.index import VideoIndex
from sttm.video.timeline import HIDDEN


class TimeShift(NamedTuple):
    """How far the frames that were taken lie from the sampled ones, in seconds.

    Attributes:
        mean_s: average over the sampled frames, those that were taken themselves counted as 0.
        max_s: the greatest.
    """

    mean_s: float
    max_s: float


def moved_to_entries(
    index: VideoIndex, picked: NDArray[np.int64], tolerance_s: float
) -> tuple[NDArray[np.int64], TimeShift]:
    """Put the nearest key frame in the place of each sampled frame, if it is near enough.

    Args:
        index: the index of the video.
        picked: int64 [T], positions in `index.pts` of the sampled frames, increasing.
        tolerance_s: the most seconds from a sampled frame to its key frame.

    Returns:
        int64 [U], positions of the frames to take, increasing, where U <= T, because several sampled frames may have
        the same key frame; and how far they lie from the sampled frames.
    """
    is_entry = (index.packet_entry != Entry.NONE) & (index.packet_pts != HIDDEN)
    entries = np.unique(np.searchsorted(index.pts, index.packet_pts[is_entry]))
    if not index.is_selectable or not len(entries):
        return picked, TimeShift(0.0, 0.0)
    seconds = index.seconds
    after = np.searchsorted(entries, picked).clip(max=len(entries) - 1)
    before = (after - 1).clip(min=0)
    is_nearer = np.abs(seconds[entries[before]] - seconds[picked]) <= np.abs(seconds[entries[after]] - seconds[picked])
    nearest = np.where(is_nearer, entries[before], entries[after])
    shift = np.abs(seconds[nearest] - seconds[picked])
    taken = np.where(shift <= tolerance_s, nearest, picked)
    shift = np.abs(seconds[taken] - seconds[picked])
    return np.unique(taken), TimeShift(float(shift.mean()), float(shift.max()))
