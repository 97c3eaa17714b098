"""The one rule of retrying: what happens to a video, or to a chunk of questions, after it failed.

The rule is a pure function of the fault, the earlier tries and the time, so that both drivers share it and tests need
no cluster. Whose fault it was decides:

    the video's own fault  ->  error row at once
    a crash                ->  tried again (the driver runs it alone), error row after `crash_tries` crashes;
                               a chunk of several questions is halved until the one that crashes stands alone
    a lost machine         ->  tried again without blame, error row after `lost_tries` losses
    wrong settings         ->  the run ends
"""

from dataclasses import dataclass

from jobs.cluster.faults import Fault, FaultKind, first_line
from sttm.errors import VideoError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0


@dataclass(frozen=True)
class Tries:
    """How a piece of work has fared so far.

    Attributes:
        crashes: processes that died, or unknown errors that came, while they worked on it.
        losses: tries that ended with a machine, a network or the store.
        not_before: time before which it must not be tried again, on the clock that `what_next` is given.
    """

    crashes: int = 0
    losses: int = 0
    not_before: float = 0.0


@dataclass(frozen=True)
class RetryLimits:
    """After how many faults work is given up.

    Attributes:
        crash_tries: crashes of one indivisible piece of work (a video, or a single question).
        lost_tries: losses of one piece of work.
        group_crashes: crashes of all work of one group (all questions about one video) together.
    """

    crash_tries: int
    lost_tries: int
    group_crashes: int = 16


@dataclass(frozen=True)
class GiveUp:
    """The work becomes error rows with this code and message."""

    code: str
    message: str


@dataclass(frozen=True)
class EndRun:
    """No other work can succeed either: the run ends with this error."""

    error: BaseException


@dataclass(frozen=True)
class TryAgain:
    """The work waits until `tries.not_before` and is then tried again.

    Attributes:
        tries: what the work, or each of its halves, carries from now on.
        in_halves: whether the work must first be divided in two.
    """

    tries: Tries
    in_halves: bool = False


def what_next(
    fault: Fault,
    tries: Tries,
    limits: RetryLimits,
    now: float,
    *,
    name: str,
    size: int = 1,
    crashes_of_group: int = 0,
) -> GiveUp | EndRun | TryAgain:
    """Decide what happens to a piece of work that has just failed.

    Args:
        fault: why it failed, from `jobs.cluster.faults.fault_of`.
        tries: its earlier tries, without this one.
        limits: after how many faults it is given up.
        now: the present time in seconds, on any clock that never goes back.
        name: what the message calls the work, such as the URI of the video.
        size: parts that it could be divided into, such as the questions of a chunk; 1 cannot be divided.
        crashes_of_group: crashes of all work of its group up to now, this one included; 0 where there are no groups.
    """
    if fault.kind is FaultKind.OWN:
        assert isinstance(fault.cause, VideoError)
        return GiveUp(fault.cause.code, fault.cause.message)
    if fault.kind is FaultKind.FATAL:
        return EndRun(fault.cause)
    crashes = tries.crashes + (fault.kind is FaultKind.CRASH)
    losses = tries.losses + (fault.kind is FaultKind.LOST)
    not_before = now + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(crashes + losses - 1, 10))
    if fault.kind is FaultKind.LOST:
        if losses >= limits.lost_tries:
            return _give_up("lost", losses, fault, name)
        return TryAgain(Tries(crashes, losses, not_before))
    if crashes_of_group >= limits.group_crashes:
        return _give_up("crashed", crashes_of_group, fault, name)
    if size > 1:
        # Each half is under suspicion, and so runs alone, but its own crashes are counted from here.
        return TryAgain(Tries(1, losses, not_before), in_halves=True)
    if crashes >= limits.crash_tries:
        return _give_up("crashed", crashes, fault, name)
    return TryAgain(Tries(crashes, losses, not_before))


def _give_up(code: str, times: int, fault: Fault, name: str) -> GiveUp:
    cause = fault.cause
    return GiveUp(code, f"{name} {code} {times} times, last: {type(cause).__name__}: {first_line(cause)}")
