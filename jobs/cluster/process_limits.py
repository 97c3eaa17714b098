"""Limits on what one video may do to the process that works on it, so that it harms no video that comes later."""

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
    """End this process if the block takes longer than `seconds`.

    A C thread does it, so that native code that holds the GIL is ended too.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


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
