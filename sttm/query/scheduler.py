"""Answers requests of many threads with one model. Requests about the same video are answered together.

    submit ──► queue ──► load videos of the next requests (loader threads) ──► batches, one step each ──► on_event
                   └───► videos that are loaded already ───────────────────────┘

One thread computes. It gives each batch one short step after another, so that a new question never waits for a long
answer to end.
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

from sttm.engine.batching import batches
from sttm.engine.ready_video import ReadyVideo
from sttm.errors import SttmError
from sttm.models.placement import is_gpu_lost
from sttm.query.batch import Batch, GenerationBatch, ScoringBatch
from sttm.query.cache_tier import CacheState, Identities
from sttm.query.question import Query
from sttm.query.request import OnEvent, Request
from sttm.query.worker import QueryWorker

_log = logging.getLogger(__name__)


class BusyError(SttmError):
    """The scheduler accepts no more requests now; ask again later."""


class Scheduler:
    """Answers requests of many threads. Each request that is not cancelled gets exactly one `Ended` or exception.

    Args:
        worker: the model and the videos.
        max_rows: questions, or options of one question, that are computed at a time. Memory grows with it.
        max_waiting: requests that are accepted before they can begin; further ones are refused. They hold no memory
            of the device.
        max_batches: batches about one video at a time; later requests about it gather until one of them ends.
        loaders: videos that are being loaded, or are loaded for the next requests, at a time.

    Attributes:
        running: requests that are being answered.
        waiting: requests that were accepted and have not begun.
    """

    def __init__(
        self,
        worker: QueryWorker,
        max_rows: int = 64,
        max_waiting: int = 256,
        max_batches: int = 4,
        loaders: int = 8,
    ) -> None:
        self._worker, self._max_rows, self._max_waiting = worker, max_rows, max_waiting
        self._max_batches, self._max_loading = max_batches, loaders
        self._loaders = ThreadPoolExecutor(loaders, "load")
        self._arrived: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None only wakes the thread
        self._queue: deque[Request] = deque()
        self._loading: dict[Identities, Future[ReadyVideo]] = {}  # videos of requests in the queue
        self._batches: list[Batch] = []
        self._in_last_step: dict[Identities, ReadyVideo] = {}  # also those of batches that have just ended
        self._lock, self._accepted, self._is_closing = threading.Lock(), 0, False
        self._gpu_loss: BaseException | None = None
        self.running = 0
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._accepted

    @property
    def is_alive(self) -> bool:
        """Whether requests are being answered. False after `close`, and after a GPU error that stays."""
        return self._thread.is_alive() and self._gpu_loss is None

    @property
    def caches(self) -> dict[str, CacheState]:
        """The state of the worker's caches, under the name "" because there is only one worker."""
        return {"": self._worker.cache_state}

    def submit(self, identities: Identities, query: Query, on_event: OnEvent, options: Sequence[str] = ()) -> Request:
        """Ask about a video.

        Args:
            identities: the artifact that the query is about, or several that are shown one after the other.
            query: the turns, and how the answer is generated.
            on_event: takes the events of the answer. It is called from another thread.
            options: answers of which the likeliest is chosen. None means that text is generated.

        Raises:
            BusyError: too many requests wait already, or the scheduler was closed or has ended.
        """
        request = Request(identities, query, tuple(options), on_event, partial(self._arrived.put, None))
        with self._lock:
            if self._is_closing:
                raise BusyError("this service is ending; ask again later")
            if self._accepted >= self._max_waiting:
                raise BusyError(f"{self._accepted} questions are waiting; ask again later")
            self._accepted += 1
            self._arrived.put(request)
        return request

    def close(self) -> None:
        """Refuse new requests, answer those that were accepted, then end the threads."""
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
                self._load_next()
                self._step()
                if self._gpu_loss is not None:
                    raise self._gpu_loss
        except BaseException as error:  # Whatever it is, no asker may wait for ever.
            _log.critical("no question is answered any more", exc_info=error)
            self._refuse()
            self._gather()
            for batch in self._batches:
                batch.fail(error)
            while self._queue:
                self._take(self._queue.popleft()).emit(error)

    def _gather(self) -> None:
        """Move requests that arrived into the queue. Wait for one if there is nothing else to do."""
        is_loaded = any(video.done() for video in self._loading.values())
        with suppress(queue.Empty):
            block = not (self._batches or self._in_last_step or is_loaded or self._gpu_loss)
            while True:
                request = self._arrived.get(block)
                if request is not None:
                    self._queue.append(request)
                block = False

    def _admit(self) -> None:
        """Begin the requests whose videos are loaded, as far as there is room. Those about one video begin together."""
        room = self._max_rows - sum(batch.rows for batch in self._batches)
        batches_of = Counter(batch.identities for batch in self._batches)
        groups: dict[Identities, tuple[ReadyVideo, list[Request]]] = {}
        later: deque[Request] = deque()
        for request in self._queue:
            if request.is_cancelled:
                self._take(request)
                continue
            has_room = room > 0 and batches_of[request.identities] < self._max_batches
            video = self._loaded(request.identities, has_room)
            if video is None:
                later.append(request)
                continue
            request.loaded_at = request.loaded_at or time.perf_counter()
            if error := video.exception():
                self._note(error)
                self._take(request).emit(error)
            elif not has_room:
                later.append(request)
            else:
                room -= request.rows(self._max_rows)
                batches_of[request.identities] += bool(request.options)  # those without options share a batch
                groups.setdefault(request.identities, (video.result(), []))[1].append(request)
        self._queue = later
        self._in_last_step.clear()  # frees the videos that no request is about, before new batches take memory
        rest = [request for video, requests in groups.values() for request in self._begin(video, requests)]
        self._queue.extendleft(reversed(rest))

    def _loaded(self, identities: Identities, has_room: bool) -> Future[ReadyVideo] | None:
        """A finished future if the video is loaded or failed to load, else None.

        The device cache is looked up only where there is room for a request. It is looked up here, and not by a loader,
        because a loader's result is seen only one step later.
        """
        if loading := self._loading.get(identities):
            return loading if loading.done() else None
        video = self._in_last_step.get(identities) or (self._worker.videos.held(*identities) if has_room else None)
        if video is None:
            return None
        found: Future[ReadyVideo] = Future()
        found.set_result(video)
        return found

    def _take(self, request: Request) -> Request:
        """Count a request as one that waits no more."""
        with self._lock:
            self._accepted -= 1
        return request

    def _load_next(self) -> None:
        """Load videos of the next requests. Only few, because loaded videos of waiting requests fill the device."""
        self._in_last_step = {batch.identities: batch.video for batch in self._batches}
        waiting = dict.fromkeys(r.identities for r in self._queue if r.identities not in self._in_last_step)
        for identities in self._loading.keys() - waiting.keys():
            self._loading.pop(identities).cancel()  # has an effect only if the load has not begun
        for identities in [identities for identities in waiting if identities not in self._loading]:
            if len(self._loading) >= self._max_loading:
                return
            self._loading[identities] = self._loaders.submit(self._worker.load, *identities)
            self._loading[identities].add_done_callback(lambda _: self._arrived.put(None))

    def _begin(self, video: ReadyVideo, requests: Sequence[Request]) -> list[Request]:
        """Begin as many batches as may run about one video, the batch of the oldest request first.

        Returns the requests that have to wait on. They hold no memory of the device.
        """
        generated = []
        for number, request in enumerate(requests):
            try:
                if not request.options:
                    request.ids = request.ids or self._worker.question_ids(video, request.query)
                    generated.append(number)
            except Exception as error:  # A request that cannot be answered must not fail the others.
                self._take(request).fail(error)
        groups = [[number] for number, request in enumerate(requests) if request.options]
        for rows in batches([len(requests[number].ids) for number in generated], self._max_rows):
            groups.append([generated[row] for row in rows])
        groups.sort(key=min)
        places = self._max_batches - sum(batch.identities == requests[0].identities for batch in self._batches)
        for group in groups[:places]:
            self._start(video, [self._take(requests[number]) for number in group])
        return [requests[number] for number in sorted(chain(*groups[places:]))]

    def _start(self, video: ReadyVideo, requests: Sequence[Request]) -> None:
        """Feed questions as one batch. If that fails, for example for want of memory, feed them as two halves."""
        if options := requests[0].options:
            rows = self._max_rows
            scoring = self._worker.choosing(video, [requests[0].query.turns], [options], rows)
            self._batches.append(ScoringBatch(video, requests[0], scoring, rows))
            return
        try:
            answers = self._worker.start(video, [r.query for r in requests], [r.ids for r in requests])
            self._batches.append(GenerationBatch(video, requests, answers))
            return
        except Exception as error:
            self._note(error)
            if len(requests) == 1 or self._gpu_loss:
                for request in requests:
                    request.fail(error)
                return
        # Outside the `except` block, because the exception keeps the failed batch's memory alive inside it.
        half = len(requests) // 2
        self._start(video, requests[:half])
        self._start(video, requests[half:])

    def _step(self) -> None:
        """Give every batch one step."""
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
        """Remember a GPU error after which every later call in this process fails, so that the scheduler ends."""
        if is_gpu_lost(error):
            self._gpu_loss = error
