"""Memory and threads that are reused for reading one KV file after another."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

_READERS = 16  # a single thread copies from the page cache far slower than memory allows


class ReadBuffer:
    """Memory for packed bytes that is reused, because mapping fresh pages costs more time than reading a local file.

    Thread-safe: while one thread has the memory, others get fresh memory.

    Attributes:
        readers: threads that fill the memory; they start at the first read and end with the buffer.
    """

    def __init__(self) -> None:
        self.readers = ThreadPoolExecutor(_READERS, "kv-reader")
        self._lock = threading.Lock()
        self._memory = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[memoryview]:
        """So many bytes of memory for the length of the block, with undefined content."""
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
    """Uninitialised memory, unlike a bytearray, which is filled with zeros first; page-locked if there is a GPU."""
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
