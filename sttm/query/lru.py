"""The most recently used things that together stay below a number of bytes."""

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteLRU(Generic[V]):
    """A mapping that forgets what was used least recently once its bytes exceed a limit. Not thread-safe.

    Attributes:
        limit_bytes: what all values together may take.
        size_bytes: what they take.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.size_bytes = limit_bytes, 0
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> V | None:
        """The value, which is now the most recently used; None if it is not held."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: str, value: V, size_bytes: int) -> list[tuple[str, V]]:
        """Hold a value; returns what had to go for it, least recently used first.

        A value larger than the limit is not held and comes back at once; nothing else goes for it.
        """
        self.drop(key)
        if size_bytes > self.limit_bytes:
            return [(key, value)]
        self._values[key] = (value, size_bytes)
        self.size_bytes += size_bytes
        gone = []
        while self.size_bytes > self.limit_bytes:
            oldest, (old, size) = self._values.popitem(last=False)
            self.size_bytes -= size
            gone.append((oldest, old))
        return gone

    def drop(self, key: str) -> None:
        """Forget a value, if it is held."""
        if key in self._values:
            self.size_bytes -= self._values.pop(key)[1]
