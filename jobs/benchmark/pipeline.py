"""Measure the throughput of the index job: first each stage alone, then the whole job over videos of the same kind.

The rate of the whole job is taken over its steady state. That begins after every prefill actor is ready and has
finished as many videos as it holds at a time, because an actor compiles and loads GPU code during its first videos. It
ends with the last video. So starting the job does not count, but finishing the last videos does. Certificates are off
unless `--set fidelity.probes=...` turns them on.
"""

import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import typer

from jobs.benchmark.clips import encode_scenes, write_clips
from jobs.benchmark.random_checkpoint import write_checkpoint
from jobs.benchmark.shapes import SHAPES
from jobs.benchmark.stages import StageRates, measure_stages
from jobs.benchmark.timing import show
from jobs.cluster.session import start_ray
from jobs.command import ConfigOption, SetOption
from jobs.config import JobConfig
from jobs.indexing.driver import Driver
from jobs.indexing.metrics import Pipeline
from sttm.config import index_recipe, load_config
from sttm.corpus.listing import VideoRef, list_corpus
from sttm.errors import ConfigError, SttmError
from sttm.indexer import GPU_STAGES
from sttm.models.checkpoint import Checkpoint
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe
from sttm.store.store import Store


class PipelineError(SttmError):
    """The benchmark could not index its own videos, or its run was too short."""


@dataclass(frozen=True)
class PipelineRow:
    """One run of the whole job.

    Attributes:
        gpus: GPUs that the job used; 0 means one actor on the CPU.
        videos: number of videos indexed.
        steady_videos: videos finished in steady state.
        steady_s: seconds of steady state.
        videos_per_s: videos per second in steady state.
        of_slowest_stage: `videos_per_s`, divided by the rate of the slowest stage alone with the same number of actors.
        efficiency: videos per second and actor, divided by those of the first run.
        idle_share: share of the actors' steady time in which their GPU (or on a CPU the model) had no work.
    """

    gpus: int
    videos: int
    steady_videos: int
    steady_s: float
    videos_per_s: float
    of_slowest_stage: float
    efficiency: float
    idle_share: float


def bench_pipeline(
    config: ConfigOption = "tiny",
    set_: SetOption = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help=f"use random weights of this architecture in place of model.path: {', '.join(SHAPES)}; default: none"
        ),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="one run for each number of GPUs, such as 1,2,4; 0 is one actor on the CPU")
    ] = "0",
    seconds: Annotated[float, typer.Option(min=0, help="about how many seconds of steady state a run lasts")] = 30,
    folder: Annotated[
        Path | None, typer.Option(help="folder that keeps the random checkpoint for later runs; default: none")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="folder for the stores, which are deleted; default: a temporary folder")
    ] = None,
) -> None:
    """Compare the throughput of the index job with that of its slowest stage, and several GPUs with one.

    The videos are generated. With --shape no checkpoint is needed. Examples:

        python -m jobs.bench pipeline
        python -m jobs.bench pipeline --config qwen2_vl_7b --shape qwen2-vl-7b --gpus 1,2 --seconds 15
    """
    if shape is not None and shape not in SHAPES:
        raise ConfigError(f"no shape is named {shape!r}; choose one of {', '.join(SHAPES)}")
    counts = [int(count) for count in gpus.split(",")]
    with tempfile.TemporaryDirectory(prefix="sttm-bench-") as temporary, start_ray(None):
        if max(counts) > (there := int(ray.cluster_resources().get("GPU", 0))):
            raise ConfigError(f"--gpus {gpus}: Ray sees {there} GPUs on this machine; give at most that many")
        where = folder or Path(temporary)
        bench = _Bench(store or where, _job(config, set_ or [], shape, where), seconds)
        stages = bench.stages(counts)
        show([asdict(stages)])
        rows: list[PipelineRow] = []
        for count in counts:
            rows.append(bench.run(count, stages, rows[0] if rows else None))
            show([asdict(rows[-1])])
    _report(config, shape, stages, rows, bench)


def _job(config: str, overrides: list[str], shape: str | None, folder: Path) -> JobConfig:
    """The settings; with a shape, a random checkpoint is written into `folder` and takes the place of `model.path`."""
    overrides = ["fidelity.probes=[]", *overrides]
    if shape is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = write_checkpoint(SHAPES[shape], folder / shape, device)
        torch.cuda.empty_cache()
        overrides.append(f"model.path={path}")
    return load_config(JobConfig, config, overrides)


class _Bench:
    """Generates videos, and runs the stages and the whole job over them."""

    def __init__(self, folder: Path, job: JobConfig, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self.job = job
        self.recipe: Recipe = index_recipe(job.index, Checkpoint.open(job.model))
        frames = max(8, ceil(job.video.max_frames * 2 / job.video.fps))
        self._scenes = encode_scenes(4, frames)

    def stages(self, counts: list[int]) -> StageRates:
        """Measure every stage alone."""
        free = int(ray.cluster_resources()["CPU"]) - (not max(counts))
        workers = max(1, free)
        with _Scratch(self._folder) as scratch:
            refs = self._clips(scratch, max(8, 3 * workers))
            return measure_stages(self._with(max(counts)), self.recipe, _store(scratch), refs, workers)

    def run(self, count: int, stages: StageRates, first: PipelineRow | None) -> PipelineRow:
        """Run the index job over new videos into a new store, with `count` GPUs."""
        actors = self._actors(count)
        slowest = min(stages.decode, actors * stages.prefill, actors * stages.publish)
        warm = actors * self.job.run.in_flight
        with _Scratch(self._folder) as scratch:
            # 20 % more videos, because the first actor starts while the last one still loads its model.
            refs = self._clips(scratch, max(8, ceil(1.2 * self._seconds * slowest)) + warm)
            watch = _Watch(Store.open(_store(scratch)))
            job = self._with(count)
            Driver(job.index, job.run, self.recipe, _store(scratch), "bench", watch).run(refs)
            watch.close()
        since_ready = [(at, row) for at, row in watch.rows if at > watch.ready]
        if len(since_ready) <= warm:
            raise PipelineError(
                f"all videos were done before the last actor was ready; raise --seconds above {self._seconds}"
            )
        steady, steady_s = since_ready[warm:], watch.rows[-1][0] - since_ready[warm - 1][0]
        rate = len(steady) / steady_s
        busy_s = sum(row.timings_s.get(stage, 0.0) for _, row in steady for stage in GPU_STAGES)
        before = first.videos_per_s / self._actors(first.gpus) if first else rate / actors
        return PipelineRow(
            gpus=count,
            videos=len(refs),
            steady_videos=len(steady),
            steady_s=round(steady_s, 3),
            videos_per_s=round(rate, 4),
            of_slowest_stage=round(rate / slowest, 4),
            efficiency=round(rate / actors / before, 4),
            idle_share=round(max(0.0, 1 - busy_s / steady_s / actors), 4),
        )

    def _actors(self, gpus: int) -> int:
        return max(1, gpus // self.job.run.gpus_per_model)

    def _with(self, gpus: int) -> JobConfig:
        return self.job.model_copy(update={"run": self.job.run.model_copy(update={"gpus": gpus})})

    def _clips(self, scratch: Path, count: int) -> list[VideoRef]:
        write_clips(scratch / "clips", self._scenes, count)
        return list_corpus(str(scratch / "clips"))


class _Scratch:
    """A temporary folder with an empty store in it, deleted at the end of a `with` block."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self._path = Path(tempfile.mkdtemp(prefix="run-", dir=parent))

    def __enter__(self) -> Path:
        Store.open(_store(self._path), create=True)
        return self._path

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._path)


def _store(scratch: Path) -> str:
    return str(scratch / "store")


class _Watch:
    """Receives the events of the driver (see `jobs.indexing.driver.Listener`) and records when they came.

    It deletes each stored cache at once, so that the disk need not hold all of them.

    Attributes:
        ready: time at which the last actor was ready, inf before that.
        rows: the stored rows, each with the time at which it came.
    """

    def __init__(self, store: Store) -> None:
        self.ready = float("inf")
        self.rows: list[tuple[float, CatalogRow]] = []
        self._store = store
        self._deleting = ThreadPoolExecutor(4)  # deleting gigabytes would hold up the driver

    def tick(self, pipeline: Pipeline) -> None:
        """Record when all actors were ready."""
        if all(pipeline.ready_s) and self.ready == float("inf"):
            self.ready = time.monotonic() - min(pipeline.ready_s)

    def decoded(self, ref: VideoRef, frames: int) -> None:
        """Do nothing."""

    def is_stored(self, ref: VideoRef) -> bool:
        """Return False, because no other job writes into this store."""
        return False

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        """Record the row and delete its cache."""
        self.rows.append((time.monotonic(), row))
        self._deleting.submit(self._delete, row.identity)

    def close(self) -> None:
        """Wait until everything is deleted."""
        self._deleting.shutdown()

    def _delete(self, identity: str) -> None:
        self._store.storage.delete(self._store.manifest(identity).kv.key)

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        """End the benchmark."""
        raise PipelineError(f"{ref.uri}: {code}: {message}")


def _report(config: str, shape: str | None, stages: StageRates, rows: list[PipelineRow], bench: _Bench) -> None:
    report: dict[str, Any] = {
        "bench": "pipeline",
        "config": config,
        "shape": shape,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and rows[-1].gpus else "cpu",
        "frames": bench.job.video.max_frames,
        "certificate": bool(bench.job.fidelity.probes),
        "stages": asdict(stages),
        "saving_overhead": round(stages.saving_overhead, 4),
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(report))
