"""Calls that run elsewhere, each with what its driver does when the call has ended."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any


class Calls:
    """The calls of one driver that are under way.

    A call says by itself that it has ended, so calls that are still under way cost the driver nothing, however many
    there are.
    """

    def __init__(self) -> None:
        self._ended: SimpleQueue[Future[Any]] = SimpleQueue()
        self._then: dict[Future[Any], Callable[[Future[Any]], None]] = {}

    def add(self, call: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        """Watch a call.

        Args:
            call: the call; that of a Ray task or method is `reference.future()`.
            then: is called with it by `collect`, once the call has ended.
        """
        self._then[call] = then
        call.add_done_callback(self._ended.put)

    def collect(self, timeout_s: float) -> None:
        """Deal with all calls that have ended; if none has, wait for the first one.

        Args:
            timeout_s: the longest wait in seconds.
        """
        try:
            first = self._ended.get(timeout=timeout_s)
        except Empty:
            return
        for call in [first, *(self._ended.get_nowait() for _ in range(self._ended.qsize()))]:
            self._then.pop(call)(call)
