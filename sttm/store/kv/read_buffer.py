"""What one KV file after another is read with: memory for its packed bytes, and threads that fill it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

_READERS = 16  # one thread copies from the page cache far below memory speed


class ReadBuffer:
    """Memory that one read after another goes through: faulting in fresh pages costs more than reading a local file.

    Thread-safe: while it is taken, others get fresh memory.

    Attributes:
        readers: threads for all who read; they start when they are first needed, and end with the buffer.
    """

    def __init__(self) -> None:
        self.readers = ThreadPoolExecutor(_READERS, "kv-reader")
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
