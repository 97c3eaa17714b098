"""Many askers, one model: questions about the same video that wait together are answered together.

    submit ──► load the video (loader threads) ──► waiting ──► batch, one token a turn ──► hear(Piece) ... hear(Ended)

One thread computes. It gives every batch one token in turn, so that a new question never waits for a long answer.
"""

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import Field

from sttm.engine.answer import ReadyVideo
from sttm.engine.cache_tier import CacheState
from sttm.engine.worker import Answers, Choice, Query, QueryWorker
from sttm.errors import SttmError
from sttm.settings import Settings

_log = logging.getLogger(__name__)


class ScheduleConfig(Settings):
    """How much is done at once.

    Attributes:
        max_rows: questions answered at one time; memory grows with it.
        max_batches: batches about one video at one time; later questions gather until one ends.
        max_waiting: questions accepted but not begun; more are refused.
        loaders: videos loaded at one time.
    """

    max_rows: int = Field(default=64, ge=1)
    max_batches: int = Field(default=4, ge=1)
    max_waiting: int = Field(default=256, ge=1)
    loaders: int = Field(default=8, ge=1)


class BusyError(SttmError):
    """More questions wait than the service accepts; ask again later."""


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
    """One question on its way."""

    identity: str
    query: Query
    options: tuple[str, ...]
    hear: Hear
    submitted: float = field(default_factory=time.perf_counter)
    loaded: float = 0.0
    first: float = 0.0
    video: ReadyVideo | None = None
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for the answer any more; thread-safe."""
        self.is_cancelled = True

    def tell(self, event: Piece | Ended | BaseException) -> None:
        with suppress(RuntimeError):  # the event loop that listened is closed
            self.hear(event)


class Scheduler:
    """Answers questions from many threads. Every question that is not cancelled hears exactly one `Ended` or exception.

    Attributes:
        running: questions being answered.
        waiting: questions accepted and not begun.
    """

    def __init__(self, worker: QueryWorker, config: ScheduleConfig | None = None) -> None:
        self._worker, self._config = worker, config or ScheduleConfig()
        self._loaders = ThreadPoolExecutor(self._config.loaders, "load")
        self._arrived: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._queue: deque[Ticket] = deque()
        self._batches: list[_Batch] = []
        self._lock, self._accepted, self._is_closing = threading.Lock(), 0, False
        self.running = 0
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._accepted

    @property
    def is_alive(self) -> bool:
        """Whether questions are still being answered."""
        return self._thread.is_alive()

    @property
    def caches(self) -> dict[str, CacheState]:
        """What the worker has at hand, under the name "": it is the only one."""
        return {"": self._worker.cache_state}

    def submit(self, identity: str, query: Query, hear: Hear, options: Sequence[str] = ()) -> Ticket:
        """Ask about a video. `hear` is called from other threads; with `options` the likeliest is chosen.

        Raises:
            BusyError: too many wait already.
        """
        with self._lock:
            if self._accepted >= self._config.max_waiting or self._is_closing:
                raise BusyError(f"{self._accepted} questions are waiting; ask again later")
            self._accepted += 1
        ticket = Ticket(identity, query, tuple(options), hear)
        self._loaders.submit(self._load, ticket)
        return ticket

    def close(self) -> None:
        """Refuse new questions, answer those accepted, end."""
        with self._lock:
            self._is_closing = True
        self._loaders.shutdown(wait=True)
        self._arrived.put(None)
        self._thread.join()

    def _load(self, ticket: Ticket) -> None:
        try:
            if not ticket.is_cancelled:
                ticket.video = self._worker.load(ticket.identity)
        except BaseException as error:  # whatever it is, the one who asked must hear of it
            self._begun(ticket)
            ticket.tell(error)
            return
        ticket.loaded = time.perf_counter()
        self._arrived.put(ticket)

    def _begun(self, ticket: Ticket) -> None:
        with self._lock:
            self._accepted -= 1

    def _run(self) -> None:
        is_open = True
        while is_open or self._queue or self._batches:
            is_open = self._gather(is_open) and is_open
            self._admit()
            for batch in list(self._batches):
                if not batch.step():
                    self._batches.remove(batch)
            self.running = sum(batch.running for batch in self._batches)

    def _gather(self, is_open: bool) -> bool:
        """Take what has arrived, waiting for something if there is nothing to do; False once closed."""
        with suppress(queue.Empty):
            while True:
                idle = is_open and not self._queue and not self._batches
                ticket = self._arrived.get(block=idle)
                if ticket is None:
                    return False
                self._queue.append(ticket)
        return True

    def _admit(self) -> None:
        """Begin what there is room for, questions about one video as one batch."""
        room = self._config.max_rows - sum(batch.running for batch in self._batches)
        groups: dict[str, list[Ticket]] = {}
        later: deque[Ticket] = deque()
        for ticket in self._queue:
            busy = sum(batch.identity == ticket.identity for batch in self._batches)
            if room <= 0 or (busy >= self._config.max_batches and not ticket.options):
                later.append(ticket)
                continue
            room -= 1
            groups.setdefault(ticket.identity, []).append(ticket)
        self._queue = later
        for tickets in groups.values():
            for ticket in tickets:
                self._begun(ticket)
            self._begin([ticket for ticket in tickets if not ticket.is_cancelled])

    def _begin(self, tickets: list[Ticket]) -> None:
        free = [ticket for ticket in tickets if not ticket.options]
        for ticket in tickets:
            if ticket.options:
                self._choose(ticket)
        # Two loads of one video may be two objects, if it left the cache between them.
        for _, same in itertools.groupby(sorted(free, key=lambda t: id(t.video)), key=lambda t: id(t.video)):
            self._start(list(same))

    def _start(self, tickets: list[Ticket]) -> None:
        assert tickets[0].video is not None
        try:
            answers = self._worker.start(tickets[0].video, [ticket.query for ticket in tickets])
        except Exception as error:
            if len(tickets) == 1:
                _report(tickets[0], error)
            else:  # one that cannot be asked costs no other
                for ticket in tickets:
                    self._start([ticket])
            return
        self._batches.append(_Batch(tickets, answers))

    def _choose(self, ticket: Ticket) -> None:
        assert ticket.video is not None
        try:
            (choice,) = self._worker.choose(ticket.video, [ticket.query.turns], [ticket.options])
        except Exception as error:
            _report(ticket, error)
            return
        ticket.first = time.perf_counter()
        ticket.tell(Piece(ticket.options[choice.index]))
        ticket.tell(_ended(ticket, "stop", choice.prompt_tokens, 0, choice))


class _Batch:
    """Questions about one video that are answered together."""

    def __init__(self, tickets: list[Ticket], answers: Answers) -> None:
        self.identity = tickets[0].identity
        self._tickets: dict[int, Ticket] = dict(enumerate(tickets))  # rows that have not ended
        self._answers = answers

    @property
    def running(self) -> int:
        return len(self._tickets)

    def step(self) -> bool:
        """One token for every row; False once all have ended."""
        for row, ticket in list(self._tickets.items()):
            if ticket.is_cancelled:
                self._answers.cut(row)
                self._end(row)
        if not self._tickets:
            return False
        try:
            pieces = self._answers.step()
        except Exception as error:
            _log.exception("a batch of %d answers failed", self.running)
            for ticket in self._tickets.values():
                ticket.tell(error)
            return False
        now = time.perf_counter()
        for row, ticket in list(self._tickets.items()):
            ticket.first = ticket.first or now
            if pieces[row]:
                ticket.tell(Piece(pieces[row]))
            if self._answers.ended(row):
                self._end(row)
        return bool(self._tickets)

    def _end(self, row: int) -> None:
        ticket, answers = self._tickets.pop(row), self._answers
        reason = answers.ended(row) or "cut"
        ticket.tell(_ended(ticket, reason, answers.prompt_tokens[row], answers.completion_tokens[row]))


def _report(ticket: Ticket, error: Exception) -> None:
    """Tell the asker why a question cannot be begun; what is not the asker's fault is also logged."""
    if not isinstance(error, SttmError):
        _log.error("a question cannot be begun", exc_info=error)
    ticket.tell(error)


def _ended(ticket: Ticket, reason: str, prompt: int, completion: int, choice: Choice | None = None) -> Ended:
    assert ticket.video is not None
    loaded, now = ticket.loaded - ticket.submitted, time.perf_counter()
    first = (ticket.first or now) - ticket.submitted
    kv_tokens = ticket.video.keys[-1].shape[1]
    return Ended(reason, prompt, completion, kv_tokens, loaded, first, now - ticket.submitted, choice)
