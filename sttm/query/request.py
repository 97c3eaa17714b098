"""A query that was submitted to a scheduler, and the events that its asker receives."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sttm.errors import SttmError
from sttm.query.answers import Choice
from sttm.query.cache_tier import Identities
from sttm.query.question import Query

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """An event: the next piece of an answer's text."""

    text: str


@dataclass(frozen=True)
class Ended:
    """An event: the answer is complete.

    Attributes:
        reason: why the answer ended: `stop`, `length` or `cut`.
        prompt_tokens: tokens of the question and the turns before it.
        completion_tokens: tokens of the answer; 0 where an option was chosen.
        kv_tokens: tokens of the video in the cache, in the last layer.
        load_s: seconds from submission until the video was loaded.
        ttft_s: seconds from submission until the first token was known.
        total_s: seconds from submission to this event.
        choice: the chosen option; None where text was generated.
    """

    reason: str
    prompt_tokens: int
    completion_tokens: int
    kv_tokens: int
    load_s: float
    ttft_s: float
    total_s: float
    choice: Choice | None = None


Event = Piece | Ended | BaseException  # an exception says why there is no answer
OnEvent = Callable[[Event], None]


@dataclass(eq=False)
class Request:
    """One submitted query. It holds no video, however long it waits.

    Attributes:
        identities: the artifacts that the query is about; several are shown to the model one after the other.
        query: the turns, and how the answer is generated.
        options: answers to choose from; none means that text is generated.
        on_event: takes each event, called from the scheduler's thread.
        wake: called when the request is cancelled, so that the scheduler frees its place at once.
        ids: token ids of the query's turns, empty until they are known.
        submitted_at: when the query was submitted, in seconds of `time.perf_counter`.
        loaded_at: when the video was found loaded, in the same seconds; 0 before.
        first_token_at: when the first token was known, in the same seconds; 0 before.
        is_cancelled: nobody waits for the answer any more.
    """

    identities: Identities
    query: Query
    options: tuple[str, ...]
    on_event: OnEvent
    wake: Callable[[], None]
    ids: list[int] = field(default_factory=list)
    submitted_at: float = field(default_factory=time.perf_counter)
    loaded_at: float = 0.0
    first_token_at: float = 0.0
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Say that nobody waits for the answer any more. Thread-safe."""
        self.is_cancelled = True
        self.wake()

    def rows(self, max_rows: int) -> int:
        """Rows of a batch that the request fills, if at most `max_rows` options are scored at a time."""
        return min(len(self.options) or 1, max_rows)

    def emit(self, event: Event) -> None:
        """Hand an event to the asker."""
        with suppress(RuntimeError):  # The asker's event loop may be closed.
            self.on_event(event)

    def fail(self, error: BaseException) -> None:
        """Hand the asker the error. An error that is not the asker's fault is also logged."""
        if not isinstance(error, SttmError):
            _log.error("a question cannot be answered", exc_info=error)
        self.emit(error)

    def end(
        self,
        reason: str,
        kv_tokens: int,
        prompt_tokens: int,
        completion_tokens: int = 0,
        choice: Choice | None = None,
    ) -> None:
        """Hand the asker the `Ended` event with these values and the times of this request."""
        now = time.perf_counter()
        self.emit(
            Ended(
                reason,
                prompt_tokens,
                completion_tokens,
                kv_tokens,
                load_s=self.loaded_at - self.submitted_at,
                ttft_s=(self.first_token_at or now) - self.submitted_at,
                total_s=now - self.submitted_at,
                choice=choice,
            )
        )
