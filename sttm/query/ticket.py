"""One question on its way: what was asked, who hears the answer, and what they hear."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sttm.errors import SttmError
from sttm.query.worker import Choice, Query

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer."""

    text: str


@dataclass(frozen=True)
class Ended:
    """An answer is complete.

    Attributes:
        reason: `stop`, `length` or `cut`.
        choice: of the options, where there were some.
        prompt_tokens, completion_tokens, kv_tokens: of the question, the answer, and the video in the cache.
        load_s, ttft_s, total_s: seconds from submission: the video is loaded, the first token is known, the end.
    """

    reason: str
    prompt_tokens: int
    completion_tokens: int
    kv_tokens: int
    load_s: float
    ttft_s: float
    total_s: float
    choice: Choice | None = None


Hear = Callable[[Piece | Ended | BaseException], None]


@dataclass(eq=False)
class Ticket:
    """One question on its way. It holds no video, however long it waits.

    Attributes:
        wake: called when nobody waits for the answer any more, so that its place is free at once.
        ids: tokens of the question, once known.
    """

    identity: str
    query: Query
    options: tuple[str, ...]
    hear: Hear
    wake: Callable[[], None]
    ids: list[int] = field(default_factory=list)
    submitted: float = field(default_factory=time.perf_counter)
    loaded: float = 0.0
    first: float = 0.0
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for the answer any more; thread-safe."""
        self.is_cancelled = True
        self.wake()

    def rows(self, max_rows: int) -> int:
        """What it takes of the memory, where so many options are scored at one time."""
        return min(len(self.options) or 1, max_rows)

    def tell(self, event: Piece | Ended | BaseException) -> None:
        with suppress(RuntimeError):  # the event loop that listened is closed
            self.hear(event)

    def fail(self, error: BaseException) -> None:
        """Tell the asker why there is no answer; what is not the asker's fault is also logged."""
        if not isinstance(error, SttmError):
            _log.error("a question cannot be answered", exc_info=error)
        self.tell(error)

    def end(self, reason: str, kv_tokens: int, prompt: int, completion: int = 0, choice: Choice | None = None) -> None:
        """Tell the asker that the answer is complete."""
        loaded, now = self.loaded - self.submitted, time.perf_counter()
        first = (self.first or now) - self.submitted
        self.tell(Ended(reason, prompt, completion, kv_tokens, loaded, first, now - self.submitted, choice))
