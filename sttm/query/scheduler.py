"""Many askers, one model: questions about the same video that wait together are answered together.

    submit ──► waiting ──► load the videos of the next ones (loader threads) ──► batches, a turn each ──► hear(Piece)
                      └──► those whose video is at hand ──────────────────────┘                ... hear(Ended)

One thread computes. It gives every batch a short turn, so that a new question never waits for a long answer.
"""

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain

from pydantic import Field

from sttm.engine.batching import batches
from sttm.engine.ready_video import ReadyVideo
from sttm.errors import SttmError
from sttm.models.placement import is_gpu_lost
from sttm.query.batch import Batch, Choosing, Speaking
from sttm.query.cache_tier import CacheState
from sttm.query.ticket import Hear, Ticket
from sttm.query.worker import Query, QueryWorker
from sttm.settings import Settings

_log = logging.getLogger(__name__)


class ScheduleConfig(Settings):
    """How much is done at once.

    Attributes:
        max_rows: questions, or options of one, answered at one time; memory grows with it.
        max_batches: batches about one video at one time; later questions gather until one ends.
        max_waiting: questions accepted but not begun; more are refused. They hold no memory of the device.
        loaders: videos loaded at one time, or loaded for the questions that are next.
    """

    max_rows: int = Field(default=64, ge=1)
    max_batches: int = Field(default=4, ge=1)
    max_waiting: int = Field(default=256, ge=1)
    loaders: int = Field(default=8, ge=1)


class BusyError(SttmError):
    """More questions wait than the service accepts; ask again later."""


class Scheduler:
    """Answers questions from many threads. Every question that is not cancelled hears exactly one `Ended` or exception.

    Attributes:
        running: questions being answered.
        waiting: questions accepted and not begun.
    """

    def __init__(self, worker: QueryWorker, config: ScheduleConfig | None = None) -> None:
        self._worker, self._config = worker, config or ScheduleConfig()
        self._loaders = ThreadPoolExecutor(self._config.loaders, "load")
        self._arrived: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()  # None only wakes
        self._queue: deque[Ticket] = deque()
        self._ahead: dict[str, Future[ReadyVideo]] = {}  # by identity, for tickets of the queue
        self._batches: list[Batch] = []
        self._asked_about: dict[str, ReadyVideo] = {}  # by identity, in the last turn: some have ended with it
        self._lock, self._accepted, self._is_closing = threading.Lock(), 0, False
        self._lost: BaseException | None = None
        self.running = 0
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._accepted

    @property
    def is_alive(self) -> bool:
        """Whether questions are still being answered; not after an error that a GPU does not recover from."""
        return self._thread.is_alive() and self._lost is None

    @property
    def caches(self) -> dict[str, CacheState]:
        """What the worker has at hand, under the name "": it is the only one."""
        return {"": self._worker.cache_state}

    def submit(self, identity: str, query: Query, hear: Hear, options: Sequence[str] = ()) -> Ticket:
        """Ask about a video. `hear` is called from other threads; with `options` the likeliest is chosen.

        Raises:
            BusyError: too many wait already, or nothing is answered any more.
        """
        ticket = Ticket(identity, query, tuple(options), hear, partial(self._arrived.put, None))
        with self._lock:
            if self._is_closing:
                raise BusyError("this service is ending; ask again later")
            if self._accepted >= self._config.max_waiting:
                raise BusyError(f"{self._accepted} questions are waiting; ask again later")
            self._accepted += 1
            self._arrived.put(ticket)
        return ticket

    def close(self) -> None:
        """Refuse new questions, answer those accepted, end."""
        self._refuse()
        self._thread.join()
        self._loaders.shutdown(wait=True)

    def _refuse(self) -> None:
        with self._lock:
            self._is_closing = True
            self._arrived.put(None)

    def _run(self) -> None:
        try:
            while not self._is_closing or not self._arrived.empty() or self._queue or self._batches:
                self._gather()
                self._admit()
                self._load_ahead()
                self._step()
                if self._lost is not None:
                    raise self._lost
        except BaseException as error:  # whatever it is, nobody may wait for ever
            _log.critical("no question is answered any more", exc_info=error)
            self._refuse()
            self._gather()
            for batch in self._batches:
                batch.fail(error)
            while self._queue:
                self._take(self._queue.popleft()).tell(error)

    def _gather(self) -> None:
        """Take what has arrived, waiting for something if there is nothing to do."""
        is_ready = any(video.done() for video in self._ahead.values())
        with suppress(queue.Empty):
            block = not (self._batches or self._asked_about or is_ready or self._lost)
            while True:
                ticket = self._arrived.get(block)
                if ticket is not None:
                    self._queue.append(ticket)
                block = False

    def _admit(self) -> None:
        """Begin what is loaded and there is room for, questions about one video together."""
        room = self._config.max_rows - sum(batch.rows for batch in self._batches)
        busy = Counter(batch.identity for batch in self._batches)
        groups: dict[str, tuple[ReadyVideo, list[Ticket]]] = {}
        later: deque[Ticket] = deque()
        for ticket in self._queue:
            if ticket.is_cancelled:
                self._take(ticket)
                continue
            has_room = room > 0 and busy[ticket.identity] < self._config.max_batches
            video = self._at_hand(ticket.identity, has_room)
            if video is None:
                later.append(ticket)
                continue
            ticket.loaded = ticket.loaded or time.perf_counter()
            if error := video.exception():
                self._note(error)
                self._take(ticket).tell(error)
            elif not has_room:
                later.append(ticket)
            else:
                room -= ticket.rows(self._config.max_rows)
                busy[ticket.identity] += bool(ticket.options)  # those without share a batch
                groups.setdefault(ticket.identity, (video.result(), []))[1].append(ticket)
        self._queue = later
        self._asked_about.clear()  # what nobody asks about any more makes room for what begins
        rest = [ticket for video, tickets in groups.values() for ticket in self._begin(video, tickets)]
        self._queue.extendleft(reversed(rest))

    def _at_hand(self, identity: str, has_room: bool) -> Future[ReadyVideo] | None:
        """A video that can be asked about now, or why it cannot be loaded; what only the cache holds if there is room.

        Asked here, not by a loader: what that finds is known only after one more turn of all batches.
        """
        if loading := self._ahead.get(identity):
            return loading if loading.done() else None
        video = self._asked_about.get(identity) or (self._worker.videos.held(identity) if has_room else None)
        if video is None:
            return None
        found: Future[ReadyVideo] = Future()
        found.set_result(video)
        return found

    def _take(self, ticket: Ticket) -> Ticket:
        """A ticket that waits no more."""
        with self._lock:
            self._accepted -= 1
        return ticket

    def _load_ahead(self) -> None:
        """Load the videos of the next questions, but of few: those that wait must not fill the device."""
        self._asked_about = {batch.identity: batch.video for batch in self._batches}
        waiting = dict.fromkeys(ticket.identity for ticket in self._queue if ticket.identity not in self._asked_about)
        for identity in self._ahead.keys() - waiting.keys():
            self._ahead.pop(identity).cancel()  # if it has not begun
        for identity in [identity for identity in waiting if identity not in self._ahead]:
            if len(self._ahead) >= self._config.loaders:
                return
            self._ahead[identity] = self._loaders.submit(self._worker.load, identity)
            self._ahead[identity].add_done_callback(lambda _: self._arrived.put(None))

    def _begin(self, video: ReadyVideo, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Begin as many batches as may be about one video, first that of the oldest question; the rest of the tickets.

        They wait on without memory of the device.
        """
        speaking = []
        for number, ticket in enumerate(tickets):
            try:
                if not ticket.options:
                    ticket.ids = ticket.ids or self._worker.question_ids(video, ticket.query)
                    speaking.append(number)
            except Exception as error:  # one that cannot be asked costs no other
                self._take(ticket).fail(error)
        groups = [[number] for number, ticket in enumerate(tickets) if ticket.options]
        for rows in batches([len(tickets[number].ids) for number in speaking], self._config.max_rows):
            groups.append([speaking[row] for row in rows])
        groups.sort(key=min)
        places = self._config.max_batches - sum(batch.identity == tickets[0].identity for batch in self._batches)
        for group in groups[:places]:
            self._start(video, [self._take(tickets[number]) for number in group])
        return [tickets[number] for number in sorted(chain(*groups[places:]))]

    def _start(self, video: ReadyVideo, tickets: Sequence[Ticket]) -> None:
        """Feed questions as one batch; where that fails, such as for want of memory, as two halves."""
        if options := tickets[0].options:
            rows = self._config.max_rows
            choosing = self._worker.choosing(video, [tickets[0].query.turns], [options], rows)
            self._batches.append(Choosing(video, tickets[0], choosing, rows))
            return
        try:
            answers = self._worker.start(video, [t.query for t in tickets], [t.ids for t in tickets])
            self._batches.append(Speaking(video, tickets, answers))
            return
        except Exception as error:
            self._note(error)
            if len(tickets) == 1 or self._lost:
                for ticket in tickets:
                    ticket.fail(error)
                return
        # Not above: the exception held what had been made.
        half = len(tickets) // 2
        self._start(video, tickets[:half])
        self._start(video, tickets[half:])

    def _step(self) -> None:
        """One turn for every batch."""
        for batch in list(self._batches):
            try:
                is_running = batch.step()
            except Exception as error:
                self._note(error)
                batch.fail(error)
                is_running = False
            if not is_running:
                self._batches.remove(batch)
        self.running = sum(batch.running for batch in self._batches)

    def _note(self, error: BaseException) -> None:
        """After most errors of a GPU every later call in the process fails: then only another process helps."""
        if is_gpu_lost(error):
            self._lost = error
