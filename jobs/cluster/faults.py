"""What really went wrong inside a Ray task, and whose fault it was."""

from dataclasses import dataclass
from enum import StrEnum

from ray import exceptions as ray_errors

from sttm.errors import ConfigError, ModelError, StoreError, VideoError

# An OSError comes from a network or a disk: a fault of the video's own file was turned into a VideoError before.
_LOST = (
    ray_errors.NodeDiedError,
    ray_errors.ObjectLostError,
    ray_errors.ActorUnavailableError,
    ray_errors.ActorUnschedulableError,
    ray_errors.GetTimeoutError,
    OSError,
    StoreError,
)


class FaultKind(StrEnum):
    """Whose fault an error was, which decides whether the work is tried again."""

    OWN = "own"  # the video itself cannot be used, however often it is tried
    CRASH = "crash"  # a process died, or an error came that nobody expected: the work is under suspicion
    LOST = "lost"  # a machine, a network or the store failed: the work is innocent
    FATAL = "fatal"  # the settings or the checkpoint are wrong: all other work would fail as well


@dataclass(frozen=True)
class Fault:
    """Why a piece of work failed.

    Attributes:
        kind: whose fault it was.
        cause: the error that was raised inside the task, without Ray's wrapping.
    """

    kind: FaultKind
    cause: BaseException


def fault_of(error: BaseException) -> Fault:
    """Unwrap what `ray.get` raised and decide whose fault it was."""
    cause = cause_of(error)
    if isinstance(cause, VideoError):
        return Fault(FaultKind.OWN, cause)
    if isinstance(cause, ConfigError | ModelError):
        return Fault(FaultKind.FATAL, cause)
    return Fault(FaultKind.LOST if is_lost(cause) else FaultKind.CRASH, cause)


def is_lost(cause: BaseException) -> bool:
    """Whether a machine, a network or the store failed, and not the work itself.

    Ray tells the death of an actor whose node was drained or preempted from any other death only by its message.
    """
    return isinstance(cause, _LOST) or (isinstance(cause, ray_errors.ActorDiedError) and "node has died" in str(cause))


def cause_of(error: BaseException) -> BaseException:
    """The error that was raised inside the task, however deep Ray wrapped it."""
    while isinstance(error, ray_errors.RayTaskError) and isinstance(error.cause, BaseException):
        if error.cause is error:
            break
        error = error.cause
    return error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters of it, fit for one cell of a table."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
