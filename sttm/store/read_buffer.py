"""Memory for the packed bytes of one KV file after another."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class ReadBuffer:
    """Memory that one read after another goes through: faulting in fresh pages costs more than reading a local file.

    Thread-safe: while it is taken, others get fresh memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[memoryview]:
        """At least this memory for the length of the block; what was in it before is undefined."""
        if not self._lock.acquire(blocking=False):
            yield _fresh(size_bytes).numpy().data
            return
        try:
            if len(self._memory) < size_bytes:
                self._memory = _fresh(size_bytes)
            yield self._memory.numpy().data[:size_bytes]
        finally:
            self._lock.release()


def _fresh(size_bytes: int) -> Tensor:
    """Not a bytearray, which would first fill itself with zeros; page-locked where a GPU will copy from it."""
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
