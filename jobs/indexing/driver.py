"""The index job on Ray: a small state machine for each video. All its state may be lost: the store holds the truth.

    waiting ──► decoding (CPU task) ──► decoded (object store) ──► running (prefill actor, one a GPU) ──► row
       ▲                                                               │
       └──────────── back-off, suspects alone ◄── crash or lost node ──┘

Ray itself retries nothing (`max_retries=0`, `max_restarts=0`): `jobs/cluster/retry.py` decides about every fault.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray import exceptions as ray_errors

from jobs.cluster.actor_pool import ActorPool, Worker, places_for
from jobs.cluster.faults import fault_of
from jobs.cluster.retry import EndRun, GiveUp, RetryLimits, Tries, TryAgain, what_next
from jobs.cluster.settings import RunConfig
from jobs.indexing.actor import PrefillActor, decode_video
from jobs.indexing.metrics import IdleClock, Pipeline
from jobs.indexing.schedule import Ahead, least_busy, next_to_decode
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe
from sttm.urls import redact_url


class Listener(Protocol):
    """Is called for everything that happens in a run; each video ends once, in any order."""

    def tick(self, pipeline: Pipeline) -> None:
        """Called at least twice a second while the run lasts."""

    def decoded(self, ref: VideoRef, frames: int) -> None:
        """The video's frames are ready. A video that is tried again is decoded again."""

    def is_stored(self, ref: VideoRef) -> bool:
        """Whether another run has stored the video meanwhile, so that this run leaves it alone."""

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        """The video is committed in the store."""

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        """The video cannot be indexed."""


@dataclass(eq=False)
class _Video:
    """One video on its way through the job.

    Attributes:
        ref: the video.
        tries: how it has fared so far.
        decoded: Ray's reference of the decoded video, while it waits for an actor.
        size_bytes: bytes of its decoded frames.
    """

    ref: VideoRef
    tries: Tries = field(default_factory=Tries)
    decoded: Any = None
    size_bytes: int = 0

    @property
    def crashes(self) -> int:
        return self.tries.crashes


class Driver:
    """Runs videos through decode tasks and prefill actors, and reports to the listener how each of them ended.

    Args:
        config: settings of the index.
        run: how the job runs on Ray.
        recipe: the recipe that `config` amounts to.
        store_url: URL of the store.
        run_id: name of this run.
        listener: is called for everything that happens.

    Attributes:
        stopping: once it is set, no video is begun and `run` returns when the videos on the actors are finished.
    """

    def __init__(
        self, config: IndexConfig, run: RunConfig, recipe: Recipe, store_url: str, run_id: str, listener: Listener
    ) -> None:
        self._run, self._listener = run, listener
        # A crash of decord is tried again with PyAV before it becomes a row.
        crash_tries = max(run.crash_tries, 2) if config.video.decoder == "decord" else run.crash_tries
        self._limits = RetryLimits(crash_tries, run.lost_tries)
        self._config = config
        self._safe_config = config.model_copy(update={"video": config.video.model_copy(update={"decoder": "pyav"})})
        self._actor_args = (config, recipe, store_url, run_id, run.prefill_timeout_s)
        self._waiting: deque[_Video] = deque()
        self._decoding: dict[Any, tuple[_Video, Any]] = {}
        self._decoded: deque[_Video] = deque()
        self._pool: ActorPool[_Video]
        self._clocks: list[IdleClock] = []
        self.stopping = threading.Event()

    def run(self, refs: list[VideoRef]) -> None:
        """Index the videos in this order, until each has a row or `stopping` is set.

        Raises:
            ConfigError: the settings fit no video, or there are fewer GPUs than one actor needs.
            ModelError: the checkpoint cannot be used.
            StartError: no actor can start.
        """
        self._waiting.extend(_Video(ref) for ref in refs)
        places, gpus = places_for(len(refs), self._run.gpus, self._run.gpus_per_model, "run.gpus")
        # If the actors took all CPUs, none would be left to decode the videos that the actors wait for.
        cpus = 0 if 0 < ray.cluster_resources().get("CPU", 0) <= places else 1
        device = f"{gpus} GPU{'s' * (gpus > 1)} each" if gpus else "on the CPU"
        print(f"loading the model: {places} worker{'s' * (places > 1)}, {device}", flush=True)
        self._pool = ActorPool(PrefillActor, self._actor_args, places, gpus, self._run.in_flight, cpus)
        self._clocks = [IdleClock() for _ in range(places)]
        while self._busy():
            self._start_decodes()
            self._start_prefills()
            self._listener.tick(self._observe())
            self._collect()
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
            "decoding": len(self._decoding),
            "decoded": len(self._decoded),
            "gpu": sum(len(worker.running) for worker in self._pool.workers),
        }
        clocks = self._clocks
        return Pipeline(places, tuple(clock.ready_s for clock in clocks), tuple(clock.idle_s for clock in clocks))

    def _start_decodes(self) -> None:
        limits = (self._run.decode_timeout_s, self._run.decode_memory_bytes)
        while not self.stopping.is_set() and (video := self._next_to_decode()):
            self._waiting.remove(video)
            if not self._listener.is_stored(video.ref):
                config = self._safe_config if video.crashes else self._config
                size, decoded = decode_video.remote(video.ref, config, *limits)
                self._decoding[size] = (video, decoded)

    def _next_to_decode(self) -> _Video | None:
        waiting_bytes = sum(video.size_bytes for video in self._decoded)
        ahead = Ahead(len(self._decoding), len(self._decoded), waiting_bytes)
        return next_to_decode(self._waiting, ahead, len(self._pool.workers), self._run, time.monotonic())

    def _start_prefills(self) -> None:
        while self._decoded and not self.stopping.is_set():
            worker = least_busy(self._pool.workers, self._decoded[0], self._run.in_flight)
            if worker is None:
                return
            video = self._decoded.popleft()
            worker.running[worker.actor.index.remote(video.decoded)] = video
            video.decoded = None

    def _collect(self) -> None:
        """Wait half a second at most for a task to end, and deal with its result."""
        waiting = [*self._decoding, *self._pool.references()]
        if not waiting:
            time.sleep(0.05)
            return
        for done in ray.wait(waiting, num_returns=1, timeout=0.5, fetch_local=False)[0]:
            if done in self._decoding:
                self._end_decode(done)
            elif ended := self._pool.end(done):
                self._end_prefill(*ended, done)

    def _end_decode(self, done: Any) -> None:
        video, decoded = self._decoding.pop(done)
        try:
            video.size_bytes, frames = ray.get(done)
        except Exception as error:  # the boundary where one video's fault becomes its row
            self._failed(video, error)
            return
        video.decoded = decoded
        self._decoded.append(video)
        self._listener.decoded(video.ref, frames)

    def _end_prefill(self, worker: Worker[_Video], video: _Video, done: Any, timeout_s: float | None = None) -> None:
        try:
            indexed = ray.get(done, timeout=timeout_s)
            self._clocks[worker.place].worked(indexed.gpu_s)
            self._listener.stored(video.ref, indexed.row)
        except Exception as error:  # the same boundary
            self._failed(video, error)
            if isinstance(error, ray_errors.RayActorError):
                # The other videos of the dead actor may have ended before it died, so their results are looked at.
                for other, held in self._pool.replace(worker).items():
                    self._end_prefill(worker, held, other, timeout_s=0)

    def _failed(self, video: _Video, error: Exception) -> None:
        uri = video.ref.uri
        match what_next(fault_of(error), video.tries, self._limits, time.monotonic(), name=uri):
            case GiveUp(code, message):
                self._listener.failed(video.ref, code, message.replace(uri, redact_url(uri)))
            case EndRun(cause):
                raise cause
            case TryAgain(tries):
                video.tries, video.decoded = tries, None
                self._waiting.append(video)
