"""Limits on what one video may do to the process that works on it, also from native code, and to those after it."""

import faulthandler
import os
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from sttm.models.placement import is_gpu_lost

_EXIT_GPU_LOST = 70


@contextmanager
def killed_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, from a C thread: also when native code holds the GIL."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def allocating_at_most(size_bytes: int) -> Iterator[None]:
    """Let allocations of this process fail beyond `size_bytes`, so that one video cannot exhaust the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes if hard < 0 else min(size_bytes, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def ended_by_a_lost_gpu() -> Iterator[None]:
    """End this process after an error that its GPU does not recover from: all later work would fail in it, too."""
    try:
        yield
    except Exception as error:
        if is_gpu_lost(error):
            traceback.print_exc()
            os._exit(_EXIT_GPU_LOST)
        raise
