"""Limits on what one video may do to the process that works on it, so that it harms no video that comes later."""

import faulthandler
import os
import resource
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sttm.models.placement import is_gpu_lost

_EXIT_GPU_LOST = 70


# The process has one timer for all its threads: it is set to the earliest of their deadlines.
_deadlines: list[float] = []
_deadlines_lock = threading.Lock()


@contextmanager
def killed_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer than `seconds`. Several threads may each be in such a block.

    A C thread does it, so that native code that holds the GIL is ended too.
    """
    deadline = time.monotonic() + seconds
    _set_timer(_deadlines.append, deadline)
    try:
        yield
    finally:
        _set_timer(_deadlines.remove, deadline)


def _set_timer(change: Callable[[float], None], deadline: float) -> None:
    with _deadlines_lock:
        change(deadline)
        if _deadlines:
            faulthandler.dump_traceback_later(max(1e-3, min(_deadlines) - time.monotonic()), exit=True)
        else:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def yielding_to_others() -> Iterator[None]:
    """Let the threads of other processes go first, while this thread computes in the block.

    A thread that sleeps for most of the time, such as one that feeds a GPU, then gets a core as soon as it wakes up, on
    a machine with as many computing threads as cores. Nothing happens where the system has no such policy.
    """
    try:
        before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):  # macOS has no such functions, and some sandboxes refuse them
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, before, parameters)


@contextmanager
def allocating_at_most(size_bytes: int) -> Iterator[None]:
    """Let allocations fail in the block once this process holds `size_bytes`; one video cannot exhaust the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes if hard < 0 else min(size_bytes, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def ended_by_a_lost_gpu() -> Iterator[None]:
    """End this process if the block raises an error that its GPU cannot recover from, since later work would fail."""
    try:
        yield
    except Exception as error:
        if is_gpu_lost(error):
            traceback.print_exc()
            os._exit(_EXIT_GPU_LOST)
        raise
