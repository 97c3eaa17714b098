"""One timeline for a video whose clock jumps, as in joined recordings.

Packets that follow each other without a jump of the clock are a run. A run whose clock does not go on from the run
before is shifted, so that its first frame follows the last frame of the run before.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HIDDEN = -(1 << 62)  # stands in place of a time stamp that is not known, or of a frame that is not shown
_BACK_S = 0.5  # a smaller step back comes from rounded or interpolated time stamps
_AHEAD_S = 10.0  # in a broadcast format a larger step ahead is a new clock; FFmpeg's own limit


class Timeline(NamedTuple):
    """How the clocks of the packets of one video fit together; P packets in file order.

    Attributes:
        run: int64 [P], number of the run of each packet, from 0 on.
        shift: int64 [P], ticks to add to each packet's time stamps.
        joins: places where the clock starts anew.
    """

    run: NDArray[np.int64]
    shift: NDArray[np.int64]
    joins: int


def continued(
    pts: NDArray[np.int64],
    dts: NDArray[np.int64],
    part: NDArray[np.int64],
    *,
    tick_s: float,
    is_broadcast: bool,
) -> Timeline:
    """Find the runs and the shifts that make their times follow each other.

    Args:
        pts: int64 [P], presentation times in ticks; HIDDEN where there is none.
        dts: int64 [P], decoding times in ticks; HIDDEN where there is none.
        part: int64 [P], increasing numbers of the streams that were joined; a new part begins a new run.
        tick_s: seconds per tick.
        is_broadcast: whether the format allows a clock that jumps ahead, as MPEG transport and program streams do.
    """
    back, ahead = -_BACK_S / tick_s, _AHEAD_S / tick_s
    known = np.flatnonzero(dts != HIDDEN)
    step = np.zeros(len(dts), np.int64)
    step[known[1:]] = np.diff(dts[known])
    is_jump = (step < back) | (is_broadcast & (step > ahead))
    is_start = is_jump | (np.diff(part, prepend=part[:1]) != 0)
    run = np.cumsum(is_start)
    if not run.any():
        return Timeline(run, np.zeros(len(pts), np.int64), 0)
    steps = np.diff(np.unique(pts[pts != HIDDEN]))
    frame_ticks = int(np.median(steps)) if len(steps) else 0
    shifts, joins, end, shift = [], 0, None, 0
    for run_pts in np.split(pts, np.flatnonzero(is_start)):
        shown = run_pts[run_pts != HIDDEN]
        if len(shown):
            gap = 0 if end is None else int(shown.min()) - end
            if not -frame_ticks / 2 <= gap <= ahead and end is not None:
                shift, joins = shift - gap, joins + 1
            end = int(shown.max()) + frame_ticks
        shifts.append(shift)
    return Timeline(run, np.array(shifts, np.int64)[run], joins)
