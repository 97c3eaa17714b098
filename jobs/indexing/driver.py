"""The index job: a small state machine for each video. All its state may be lost: the store holds the truth.

    waiting ──► decoding (CPU task) ──► decoded (object store) ──► running (prefill actor, one a GPU) ──► row
     ▲   └──────────────── undecoded, where the actor's device decodes ──────▲ │
     └──────────── back-off, suspects alone, decoded by a CPU ◄── crash or lost node

Ray itself retries nothing (`max_retries=0`, `max_restarts=0`): `jobs/cluster/retry.py` decides about every fault.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from ray import exceptions as ray_errors

from jobs.cluster.actor_pool import ActorPool, Worker
from jobs.cluster.calls import Calls
from jobs.cluster.faults import fault_of
from jobs.cluster.nodes import TaskNeeds
from jobs.cluster.retry import EndRun, GiveUp, RetryLimits, TryAgain, what_next
from jobs.cluster.settings import RunConfig
from jobs.indexing.actor import Decoded, Device, Indexed, Refused
from jobs.indexing.metrics import IdleClock, Pipeline
from jobs.indexing.ray_cluster import Cluster, RayCluster
from jobs.indexing.schedule import (
    MOST_DEVICE_DECODES,
    Ahead,
    DeviceDecoding,
    ExpectedNeeds,
    LeastBusy,
    device_decoding,
    goes_undecoded,
    may_decode,
)
from jobs.indexing.waiting import Video, WaitingVideos
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe
from sttm.urls import redact_url

_TICK_EVERY_S = 0.5


class Listener(Protocol):
    """Is called for everything that happens in a run; each video ends once, in any order."""

    def tick(self, pipeline: Pipeline) -> None:
        """Called about twice a second while the run lasts, and at its end."""

    def decoded(self, ref: VideoRef, frames: int) -> None:
        """The video's frames are ready. A video that is tried again is decoded again."""

    def is_stored(self, ref: VideoRef) -> bool:
        """Whether another run has stored the video meanwhile, so that this run leaves it alone."""

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        """The video is committed in the store."""

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        """The video cannot be indexed."""


class Driver:
    """Runs videos through decode tasks and prefill actors, and reports to the listener how each of them ended.

    Args:
        config: settings of the index.
        run: how the job runs on Ray.
        recipe: the recipe that `config` amounts to.
        store_url: URL of the store.
        run_id: name of this run.
        listener: is called for everything that happens.
        cluster: where decodes and actors run; None takes the Ray cluster that this process has joined.

    Attributes:
        stopping: once it is set, no video is begun and `run` returns when the videos on the actors are finished.
    """

    def __init__(
        self,
        config: IndexConfig,
        run: RunConfig,
        recipe: Recipe,
        store_url: str,
        run_id: str,
        listener: Listener,
        cluster: Cluster | None = None,
    ) -> None:
        self._run, self._listener, self._cluster = run, listener, cluster
        self._made_with = (config, run, recipe, store_url, run_id)
        self._device_decoding = device_decoding(config.video.decoder)
        # A crash of a decoder other than PyAV is tried again with PyAV, by a CPU, before it becomes a row.
        self._limits_on_device = RetryLimits(max(run.crash_tries, 2), run.lost_tries)
        with_pyav = RetryLimits(run.crash_tries, run.lost_tries)
        self._limits = self._limits_on_device if config.video.decoder == "decord" else with_pyav
        self._waiting = WaitingVideos()
        self._decoding = 0
        self._decoded: deque[Video] = deque()
        self._frame_bytes = 0
        self._expected = ExpectedNeeds()
        self._calls = Calls()
        self._pool: ActorPool[Video]
        self._for_decoded: LeastBusy[Worker[Video]] = LeastBusy(run.in_flight)
        self._for_undecoded: LeastBusy[Worker[Video]] = LeastBusy(run.in_flight + MOST_DEVICE_DECODES)
        self._for_suspects: LeastBusy[Worker[Video]] = LeastBusy(1)
        self._said: set[str] = set()
        self._refused: Counter[str] = Counter()
        self._refused_in_a_row = 0
        self._clocks: list[IdleClock] = []
        self.stopping = threading.Event()

    def run(self, refs: Sequence[VideoRef]) -> None:
        """Index the videos in this order, until each has a row or `stopping` is set.

        Raises:
            ConfigError: the settings fit no video, or there are fewer GPUs than one actor needs.
            ModelError: the checkpoint cannot be used.
            StartError: no actor can start.
        """
        self._waiting = WaitingVideos(refs)
        self._cluster = self._cluster or RayCluster(*self._made_with)
        places, source = self._cluster.reserve(len(refs))
        self._clocks = [IdleClock() for _ in range(places)]
        self._pool = ActorPool(self._calls, source, places, self._became_ready)
        try:
            self._go_on()
        finally:
            self._pool.release()
        for reason, videos in self._refused.most_common():
            print(f"{videos} videos were decoded on CPUs: {reason}", flush=True)

    def _go_on(self) -> None:
        ticked = float("-inf")
        while self._busy():
            self._pool.start_due()
            if not self.stopping.is_set():
                self._start_prefills()
                self._start_device_decodes()
                self._start_decodes()
            if time.monotonic() - ticked >= _TICK_EVERY_S:
                self._listener.tick(self._observe())
                ticked = time.monotonic()
            self._calls.collect(_TICK_EVERY_S)
        self._listener.tick(self._observe())

    def _busy(self) -> bool:
        if self.stopping.is_set():
            return self._pool.is_busy
        return bool(self._waiting or self._decoding or self._decoded or self._pool.is_busy)

    def _observe(self) -> Pipeline:
        """Where the videos are now, for the gauges; also brings the idle clocks up to date."""
        for worker in self._pool.workers:
            self._clocks[worker.place].observe(worker.is_ready)
        places = {
            "queue": len(self._waiting),
            "decoding": self._decoding,
            "decoded": len(self._decoded),
            "gpu": sum(len(worker.running) for worker in self._pool.workers),
        }
        clocks = self._clocks
        return Pipeline(places, tuple(clock.ready_s for clock in clocks), tuple(clock.idle_s for clock in clocks))

    def _start_prefills(self) -> None:
        while self._decoded:
            video = self._decoded[0]
            worker = (self._for_suspects if video.crashes else self._for_decoded).first()
            if worker is None:
                return
            self._decoded.popleft()
            call = self._there.index(worker.actor, video.decoded)
            video.decoded = None
            self._give(worker, video, call)

    def _start_device_decodes(self) -> None:
        if self._decoded and self._decoded[0].crashes:  # a suspect waits for an actor that holds nothing else
            return
        while worker := self._for_undecoded.first():
            held = sum(not video.is_undecoded for video in worker.running.values())
            if not goes_undecoded(self._device_decoding, len(self._decoded), held, self._refused_in_a_row):
                return
            if (video := self._take(self._waiting.next_new)) is None:
                return
            video.is_undecoded = True
            self._give(worker, video, self._there.decode_and_index(worker.actor, video))

    def _start_decodes(self) -> None:
        needs, actors = self._expected.needs, len(self._pool.workers)
        room = self._there.room(needs)
        with_new = self._device_decoding is not DeviceDecoding.ALWAYS
        take = partial(self._waiting.next_for_cpu, time.monotonic(), with_new)
        while may_decode(self._ahead, actors, room, needs.returned_bytes) and (video := self._take(take)):
            self._decoding += 1
            self._calls.add(self._there.decode(video, needs), partial(self._end_decode, video))

    @property
    def _there(self) -> Cluster:
        assert self._cluster is not None
        return self._cluster

    @property
    def _ahead(self) -> Ahead:
        return Ahead(self._decoding, len(self._decoded), self._frame_bytes)

    def _take(self, take: Callable[[], Video | None]) -> Video | None:
        """Take waiting videos until one is found that no other run has stored; None if there is none."""
        while (video := take()) and self._listener.is_stored(video.ref):
            pass
        return video

    def _give(self, worker: Worker[Video], video: Video, call: "Future[Any]") -> None:
        self._pool.run(worker, call, video, self._end_prefill)
        self._note(worker)

    def _note(self, worker: Worker[Video]) -> None:
        """Keep in mind what a worker may be given now; a suspect is alone on its actor."""
        held = worker.running.values()
        if not worker.is_ready or any(video.crashes for video in held):
            for places in (self._for_decoded, self._for_undecoded, self._for_suspects):
                places.remove(worker)
            return
        undecoded = sum(video.is_undecoded for video in held)
        self._for_decoded.put(worker, len(held) - undecoded)
        self._for_suspects.put(worker, len(held))
        self._for_undecoded.remove(worker)
        device: Device = worker.loaded
        if undecoded < min(device.decodes, MOST_DEVICE_DECODES):
            self._for_undecoded.put(worker, len(held))

    def _became_ready(self, worker: Worker[Video]) -> None:
        device: Device = worker.loaded
        if device.cannot_decode_because and device.cannot_decode_because not in self._said:
            print(f"videos are decoded on CPUs only: {device.cannot_decode_because}", flush=True)
            self._said.add(device.cannot_decode_because)
        self._note(worker)

    def _end_decode(self, video: Video, call: "Future[Any]") -> None:
        self._decoding -= 1
        try:
            decoded: Decoded = call.result()
        except Exception as error:  # the boundary where one video's fault becomes its row
            self._failed(video, error)
            return
        video.frame_bytes = decoded.frame_bytes
        self._frame_bytes += decoded.frame_bytes
        self._expected.add(TaskNeeds(decoded.memory_bytes, decoded.frame_bytes))
        self._decoded.append(video)
        self._listener.decoded(video.ref, decoded.frames)

    def _end_prefill(self, worker: Worker[Video], video: Video, call: "Future[Any]") -> None:
        self._frame_bytes -= video.frame_bytes
        video.frame_bytes = 0
        try:
            ended: Indexed | Refused = call.result()
        except Exception as error:  # the same boundary
            died = isinstance(error, ray_errors.RayActorError)
            cause = self._pool.replace(worker, error) if died else error
            self._note(worker)
            self._failed(video, cause)
            return
        self._note(worker)
        if isinstance(ended, Refused):
            self._refused[ended.reason] += 1
            self._refused_in_a_row += 1
            video.is_undecoded = False
            self._waiting.put_back_refused(video)
            return
        if video.is_undecoded:
            self._refused_in_a_row = 0
            self._listener.decoded(video.ref, ended.row.frames)
        self._clocks[worker.place].worked(ended.gpu_s)
        self._listener.stored(video.ref, ended.row)

    def _failed(self, video: Video, error: BaseException) -> None:
        uri, limits = video.ref.uri, self._limits_on_device if video.is_undecoded else self._limits
        match what_next(fault_of(error), video.tries, limits, time.monotonic(), name=uri):
            case GiveUp(code, message):
                self._listener.failed(video.ref, code, message.replace(uri, redact_url(uri)))
            case EndRun(cause):
                raise cause
            case TryAgain(tries):
                video.tries, video.decoded, video.is_undecoded = tries, None, False
                self._waiting.put_back_tried(video)
