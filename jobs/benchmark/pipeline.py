"""Throughput of the index job: each stage alone, then the whole job's driver over the same videos.

Steady state begins when every prefill actor is ready and as many rows have come since as the actors hold videos at one
time (their first videos compile and load GPU code), and lasts to the last row: so starting is left out, draining is in.
The idle share is that of the actors' time in it in which their GPU (on a CPU: the model) had no work. Certificates are
off unless asked for.
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
from jobs.config import JobConfig
from jobs.indexing.driver import Driver
from jobs.indexing.metrics import Pipeline
from sttm.config import index_recipe, load_config
from sttm.corpus import VideoRef, list_corpus
from sttm.errors import ConfigError, SttmError
from sttm.indexer import GPU_STAGES
from sttm.models.checkpoint import Checkpoint
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe
from sttm.store.store import Store


class PipelineError(SttmError):
    """The benchmark's own videos could not be indexed."""


@dataclass(frozen=True)
class PipelineRow:
    """One run of the whole job. `of_slowest_stage` is its rate over that of the slowest stage alone, with as many
    actors; `efficiency` is its rate over as many times that of the first run's actors."""

    gpus: int
    videos: int
    steady_videos: int
    steady_s: float
    videos_per_s: float
    of_slowest_stage: float
    efficiency: float
    idle_share: float


def bench_pipeline(
    shape: Annotated[str, typer.Option(help="tiny, " + ", ".join(SHAPES))] = "tiny",
    gpus: Annotated[str, typer.Option(help="runs with so many GPUs, such as 1,2,4; 0 is one actor on the CPU")] = "0",
    seconds: Annotated[float, typer.Option(min=0, help="of steady state a run should last, about")] = 30,
    folder: Annotated[Path | None, typer.Option(help="keeps the checkpoint for the next time; default none")] = None,
    store: Annotated[
        Path | None, typer.Option(help="folder to store into, left empty; default beside the rest")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, such as fidelity.probes=[Why?]")] = None,
) -> None:
    """Compare the index job's throughput with its slowest stage, and several GPUs with one."""
    if shape not in ("tiny", *SHAPES):
        raise ConfigError(f"no shape {shape!r}; known: tiny, {', '.join(SHAPES)}")
    counts = [int(count) for count in gpus.split(",")]
    with tempfile.TemporaryDirectory(prefix="sttm-bench-") as temporary, start_ray(None):
        if max(counts) > (there := int(ray.cluster_resources().get("GPU", 0))):
            raise ConfigError(f"--gpus {gpus}: Ray sees {there} GPUs here")
        where = folder or Path(temporary)
        bench = _Bench(store or where, _job(shape, where, set_ or []), seconds)
        stages = bench.stages(counts)
        show([asdict(stages)])
        rows: list[PipelineRow] = []
        for count in counts:
            rows.append(bench.run(count, stages, rows[0] if rows else None))
            show([asdict(rows[-1])])
    _report(shape, stages, rows, bench)


def _job(shape: str, folder: Path, overrides: list[str]) -> JobConfig:
    """The settings of the shape's own file, with a random checkpoint in place of the real one."""
    overrides = ["fidelity.probes=[]", *overrides]
    if shape == "tiny":
        return load_config(JobConfig, "configs/tiny.yaml", overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = write_checkpoint(SHAPES[shape], folder / shape, device)
    torch.cuda.empty_cache()
    file = f"configs/{shape.replace('-', '_')}.yaml"
    return load_config(JobConfig, file, [f"model.path={path}", *overrides])


class _Bench:
    """The videos, and runs over them."""

    def __init__(self, folder: Path, job: JobConfig, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self.job = job
        self.recipe: Recipe = index_recipe(job.index, Checkpoint.open(job.model))
        frames = max(8, ceil(job.video.max_frames * 2 / job.video.fps))
        self._scenes = encode_scenes(4, frames)

    def stages(self, counts: list[int]) -> StageRates:
        """Every stage alone."""
        free = int(ray.cluster_resources()["CPU"]) - (not max(counts))
        workers = max(1, min(free, self.job.run.decode_ahead * max(1, *counts)))
        with _Scratch(self._folder) as scratch:
            refs = self._clips(scratch, max(8, 3 * workers))
            return measure_stages(self._with(max(counts)), self.recipe, _store(scratch), refs, workers)

    def run(self, count: int, stages: StageRates, first: PipelineRow | None) -> PipelineRow:
        """The job's own driver over new videos into a new store."""
        actors = self._actors(count)
        slowest = min(stages.decode, actors * stages.prefill, actors * stages.publish)
        warm = actors * self.job.run.in_flight
        with _Scratch(self._folder) as scratch:
            # Some more, because the first actor is ready before the last one.
            refs = self._clips(scratch, max(8, ceil(1.2 * self._seconds * slowest)) + warm)
            watch = _Watch(Store.open(_store(scratch)))
            job = self._with(count)
            Driver(job.index, job.run, self.recipe, _store(scratch), "bench", watch).run(refs)
            watch.close()
        since_ready = [(at, row) for at, row in watch.rows if at > watch.ready]
        if len(since_ready) <= warm:
            raise PipelineError(f"the last actor was ready when all was done; give --seconds more than {self._seconds}")
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
    """A folder that is there for the length of the block, with an empty store in it."""

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
    """Notes when the actors were ready and when each row came; deletes what was stored, so that disks need not hold it.

    Attributes:
        ready: when the last actor was.
        rows: with the time of each.
    """

    def __init__(self, store: Store) -> None:
        self.ready = float("inf")
        self.rows: list[tuple[float, CatalogRow]] = []
        self._store = store
        self._deleting = ThreadPoolExecutor(4)  # giving back gigabytes takes a file system longer than the driver has

    def tick(self, pipeline: Pipeline) -> None:
        """As for `jobs.indexing.driver.Listener`, like those below."""
        if all(pipeline.ready_s) and self.ready == float("inf"):
            self.ready = time.monotonic() - min(pipeline.ready_s)

    def decoded(self, ref: VideoRef, frames: int) -> None:
        """Nothing to note."""

    def is_stored(self, ref: VideoRef) -> bool:
        """Nobody else is at work."""
        return False

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        self.rows.append((time.monotonic(), row))
        self._deleting.submit(self._delete, row.identity)

    def close(self) -> None:
        """Until everything is deleted."""
        self._deleting.shutdown()

    def _delete(self, identity: str) -> None:
        self._store.storage.delete(self._store.manifest(identity).kv.key)

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        raise PipelineError(f"{ref.uri}: {code}: {message}")


def _report(shape: str, stages: StageRates, rows: list[PipelineRow], bench: _Bench) -> None:
    report: dict[str, Any] = {
        "bench": "pipeline",
        "shape": shape,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and rows[-1].gpus else "cpu",
        "frames": bench.job.video.max_frames,
        "certificate": bool(bench.job.fidelity.probes),
        "stages": asdict(stages),
        "saving_overhead": round(stages.saving_overhead, 4),
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(report))
