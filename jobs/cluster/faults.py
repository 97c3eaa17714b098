"""Telling faults apart: what really happened inside a Ray task, and whose fault it was."""

from ray import exceptions as ray_errors

from sttm.errors import ConfigError, ModelError, StoreError

# Faults of the machines, never of the work: it is tried again without blame.
LOST = (
    ray_errors.NodeDiedError,
    ray_errors.ObjectLostError,
    ray_errors.ActorUnavailableError,
    ray_errors.ActorUnschedulableError,
    ray_errors.GetTimeoutError,
    OSError,  # of a network or a disk; what is the video's own fault was made a VideoError before
    StoreError,
)
# Faults of the settings or of the checkpoint: every video would meet them, so the run ends.
FATAL = (ConfigError, ModelError)


def is_lost(cause: BaseException) -> bool:
    """Whether it is a fault of the machines.

    Of an actor whose node was drained or preempted Ray says only in words that it did not die by itself.
    """
    return isinstance(cause, LOST) or (isinstance(cause, ray_errors.ActorDiedError) and "node has died" in str(cause))


def cause_of(error: BaseException) -> BaseException:
    """What was raised inside the task, however deep Ray wrapped it."""
    while isinstance(error, ray_errors.RayTaskError) and isinstance(error.cause, BaseException):
        if error.cause is error:
            break
        error = error.cause
    return error


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for a table."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
