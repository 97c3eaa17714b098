"""A mapping that keeps the most recently used values within a number of bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLRU(Generic[K, V]):
    """A mapping that drops the least recently used values once their bytes exceed a limit. Not thread-safe.

    Attributes:
        limit_bytes: bytes that all values together may take.
        size_bytes: bytes that all values together take now.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.size_bytes = limit_bytes, 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used one. None if the mapping does not hold it."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: K, value: V, size_bytes: int) -> list[tuple[K, V]]:
        """Hold a value. Returns the keys and values that were dropped for it, least recently used first.

        A value larger than the limit is not held: it is returned at once, and no other value is dropped for it.
        """
        self.drop(key)
        if size_bytes > self.limit_bytes:
            return [(key, value)]
        self._values[key] = (value, size_bytes)
        self.size_bytes += size_bytes
        dropped = []
        while self.size_bytes > self.limit_bytes:
            oldest, (old, size) = self._values.popitem(last=False)
            self.size_bytes -= size
            dropped.append((oldest, old))
        return dropped

    def drop(self, key: K) -> None:
        """Drop a value, if the mapping holds it."""
        if key in self._values:
            self.size_bytes -= self._values.pop(key)[1]
