"""What the service needs of whatever answers its questions: a scheduler in this process, or replicas on Ray Serve."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from sttm.query.cache_tier import CacheState, Identities
from sttm.query.question import Query
from sttm.query.request import OnEvent


class Cancellable(Protocol):
    """A question that was submitted."""

    def cancel(self) -> None:
        """Say that nobody waits for the answer any more."""


class Answerer(Protocol):
    """Answers questions. The last event of each that is not cancelled is exactly one `Ended` or exception."""

    @property
    def running(self) -> int:
        """Questions that are being answered."""

    @property
    def waiting(self) -> int:
        """Questions that were accepted and have not begun."""

    @property
    def is_alive(self) -> bool:
        """Whether questions are being answered."""

    @property
    def caches(self) -> Mapping[str, CacheState]:
        """The state of the caches by replica. A scheduler in this process has the name ""."""

    def submit(
        self, identities: Identities, query: Query, on_event: OnEvent, options: Sequence[str] = ()
    ) -> Cancellable:
        """Ask about a video.

        Args:
            identities: the artifact that the query is about, or several that are shown one after the other.
            query: the turns, and how the answer is generated.
            on_event: takes the events of the answer, possibly from another thread.
            options: answers of which the likeliest is chosen. None means that text is generated.

        Raises:
            BusyError: too many questions wait already, or the service is ending.
        """

    def close(self) -> None:
        """Refuse new questions, answer those that were accepted, then end."""
