"""What answers the questions of a service: a scheduler in its own process, or replicas behind Ray Serve."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from sttm.query.cache_tier import CacheState
from sttm.query.ticket import Hear
from sttm.query.worker import Query


class Asked(Protocol):
    """One question on its way."""

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""


class Answerer(Protocol):
    """Answers questions. Every one that is not cancelled hears exactly one `Ended` or exception."""

    @property
    def running(self) -> int:
        """Questions being answered."""

    @property
    def waiting(self) -> int:
        """Questions accepted and not begun."""

    @property
    def is_alive(self) -> bool:
        """Whether questions are still being answered."""

    @property
    def caches(self) -> Mapping[str, CacheState]:
        """What is at hand, by replica; a single process has the name ""."""

    def submit(self, identity: str, query: Query, hear: Hear, options: Sequence[str] = ()) -> Asked:
        """Ask; arguments and errors as for `Scheduler.submit`."""

    def close(self) -> None:
        """Refuse new questions, finish those accepted, end."""
