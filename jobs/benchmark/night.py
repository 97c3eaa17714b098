"""Measure the driver of the index job alone: a night in which decoding and prefilling do nothing.

Everything that the driver's process does for a video is real: the queue, the hand-out, the row, the log line, the
metrics, the catalog in a folder. With `--on-ray` the empty decodes and prefills are calls to other processes on Ray,
which many places of the pool share, so that this machine need not hold hundreds of actors.
"""

import itertools
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

from jobs.benchmark.timing import show
from jobs.cluster.actor_pool import ActorSource
from jobs.cluster.nodes import TaskNeeds
from jobs.cluster.session import start_ray
from jobs.cluster.settings import RunConfig
from jobs.indexing.actor import Decoded, Device, Indexed
from jobs.indexing.driver import Driver
from jobs.indexing.launch import Launch
from jobs.indexing.metrics import Pipeline
from jobs.indexing.ray_cluster import Cluster, RayCluster
from jobs.indexing.run_record import RunRecord
from jobs.indexing.schedule import Room
from jobs.indexing.waiting import Video
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.index_plan import Plan
from sttm.indexer import GPU_STAGES
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import make_recipe, recipe_digest
from sttm.store.store import Store

_RECIPE = make_recipe(model={"id": "none"})
_RECIPE_DIGEST = recipe_digest(_RECIPE)
_RUN_ID = "night"
_PROCESSES = 2  # that stand for the actors on Ray


@dataclass(frozen=True)
class NightRow:
    """One simulated night.

    Attributes:
        actors: places for actors.
        videos: number of videos.
        on_ray: whether decodes and prefills were calls to other processes.
        videos_per_cpu_s: videos for each CPU second of the driver's main thread.
        main_cpu_s: CPU seconds of the driver's main thread.
        process_cpu_s: CPU seconds of all threads of the driver's process, those of Ray and of the flushes included.
        longest_tick_s: longest time that the driver stood still for screen, metrics and catalog, in seconds.
        memory_mb: growth of the process's peak resident memory, in 10^6 bytes.
    """

    actors: int
    videos: int
    on_ray: bool
    videos_per_cpu_s: float
    main_cpu_s: float
    process_cpu_s: float
    longest_tick_s: float
    memory_mb: float


def bench_night(
    videos: Annotated[int, typer.Option(min=1, help="videos of the night")] = 20_000,
    actors: Annotated[str, typer.Option(help="one run for each number of actors")] = "8,64,256",
    on_ray: Annotated[
        bool, typer.Option("--on-ray", help="decode and prefill in other processes, which do nothing")
    ] = False,
) -> None:
    """Measure how many videos a CPU second of the index job's driver takes, if all other work is done at once.

    Examples:

        python -m jobs.bench night
        python -m jobs.bench night --videos 5000 --actors 8,256 --on-ray
    """
    rows = []
    with ExitStack() as stack:
        if on_ray:
            stack.enter_context(start_ray(None))
        for count in actors.split(","):
            rows.append(simulated_night(videos, int(count), on_ray))
            show([asdict(rows[-1])])
    print(json.dumps({"bench": "night", "rows": [asdict(row) for row in rows]}))


def simulated_night(videos: int, actors: int, on_ray: bool = False) -> NightRow:
    """Run the driver over videos that nothing is done with, into a store of its own.

    Args:
        videos: how many videos.
        actors: how many places for actors.
        on_ray: whether decodes and prefills are calls to other processes; Ray must be running then.
    """
    refs = [
        VideoRef(
            f"s3://bucket/2026/{i % 1000:03}/video-{i:08}.mp4", f"video-{i:08}", f"{i:08}.mp4", 10_000_000, f"{i:032x}"
        )
        for i in range(videos)
    ]
    config, run = IndexConfig(), RunConfig()
    with tempfile.TemporaryDirectory(prefix="sttm-night-") as folder, _quiet():
        store = Store.open(folder, create=True)
        launch = Launch([], "", {}, "", folder, {}, "", {}, "")
        record = _TimedRecord(store, _RECIPE, _RUN_ID, Plan(refs), launch)
        cluster: Cluster = _NoWorkOnRay(actors, config, run, folder) if on_ray else _NoWork(actors)
        driver = Driver(config, run, _RECIPE, folder, _RUN_ID, record, cluster)
        record.begin()
        memory, process, main = _peak_memory(), time.process_time(), time.thread_time()
        with record.progress:
            driver.run(refs)
        main_s, process_s = time.thread_time() - main, time.process_time() - process
        record.end("finished")
        assert record.progress.done == videos
    return NightRow(
        actors=actors,
        videos=videos,
        on_ray=on_ray,
        videos_per_cpu_s=round(videos / main_s, 1),
        main_cpu_s=round(main_s, 3),
        process_cpu_s=round(process_s, 3),
        longest_tick_s=round(record.longest_tick_s, 3),
        memory_mb=round((_peak_memory() - memory) / 1e6, 1),
    )


class _TimedRecord(RunRecord):
    """A run record that notes how long it held up the driver at most."""

    longest_tick_s = 0.0

    def tick(self, pipeline: Pipeline) -> None:
        started = time.perf_counter()
        super().tick(pipeline)
        self.longest_tick_s = max(self.longest_tick_s, time.perf_counter() - started)


class _NoWork:
    """A cluster whose calls have ended when they begin."""

    name = "nobody"

    def __init__(self, actors: int) -> None:
        self._actors = actors
        self._room = Room(decodes=2 * actors, spare_decodes=1, frame_bytes=float("inf"))

    def reserve(self, videos: int) -> tuple[int, ActorSource]:
        return self._actors, self

    def start(self) -> tuple[Any, "Future[Any]"]:
        return None, _ended(Device(0))

    def kill(self, actor: Any) -> None:
        pass

    def room(self, needs: TaskNeeds) -> Room:
        return self._room

    def decode(self, video: Video, needs: TaskNeeds) -> "Future[Any]":
        video.decoded = video.ref
        return _ended(_DECODED)

    def index(self, actor: Any, decoded: Any) -> "Future[Any]":
        return _ended(_indexed(decoded))

    def decode_and_index(self, actor: Any, video: Video) -> "Future[Any]":
        return _ended(_indexed(video.ref))


class _NoWorkOnRay(RayCluster):
    """The Ray cluster of the job, with a task and actors that do nothing; many places share one actor."""

    def __init__(self, actors: int, config: IndexConfig, run: RunConfig, store_url: str) -> None:
        super().__init__(config, run, _RECIPE, store_url, _RUN_ID)
        self.task = ray.remote(max_retries=0, num_returns=2)(_decode_nothing)
        self._actors, self._source = actors, _SharedActors()

    def reserve(self, videos: int) -> tuple[int, ActorSource]:
        return self._actors, self._source

    def room(self, needs: TaskNeeds) -> Room:
        super().room(needs)
        return Room(decodes=2 * self._actors, spare_decodes=1, frame_bytes=float("inf"))


class _SharedActors:
    """Gives out a few actors in turn."""

    name = "nobody"

    def __init__(self) -> None:
        kind = ray.remote(num_cpus=0, max_concurrency=64)(_Nobody)
        self._actors = itertools.cycle([kind.remote() for _ in range(_PROCESSES)])

    def start(self) -> tuple[Any, "Future[Any]"]:
        actor = next(self._actors)
        return actor, actor.load.remote().future()

    def kill(self, actor: Any) -> None:
        ray.kill(actor)


class _Nobody:
    """An actor that stores nothing."""

    def load(self) -> Device:
        return Device(0)

    def index(self, decoded: VideoRef) -> Indexed:
        return _indexed(decoded)


_DECODED = Decoded(frames=16, frame_bytes=200_000, memory_bytes=1 << 20)


def _decode_nothing(ref: VideoRef, config: IndexConfig, timeout_s: float, memory_bytes: int) -> tuple[Decoded, Any]:
    return _DECODED, ref


def _indexed(ref: VideoRef) -> Indexed:
    row = CatalogRow(
        video_id=ref.video_id,
        uri=ref.uri,
        name=ref.name,
        status="ok",
        recipe_digest=_RECIPE_DIGEST,
        source_key=ref.version.rjust(64, "0"),
        identity=ref.version.rjust(64, "1"),
        content_digest=ref.version.rjust(64, "2"),
        source_bytes=10_000_000,
        duration_s=12.0,
        frames=16,
        kv_bytes=966_656,
        tokens_bytes=210_012,
        tokens_before=1_672,
        tokens_after=501,
        timings_s=dict.fromkeys(("decode", *GPU_STAGES, "digest"), 0.1),
        run_id=_RUN_ID,
    )
    return Indexed(row, gpu_s=0.01)


def _ended(result: Any) -> "Future[Any]":
    call: Future[Any] = Future()
    call.set_result(result)
    return call


@contextmanager
def _quiet() -> Iterator[None]:
    """Write what the driver says to nowhere: tens of thousands of lines would hide the result."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
