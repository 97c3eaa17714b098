"""Measure the throughput of the index job: first each stage alone, then the whole job over videos of the same kind.

The rate of the whole job is taken over its steady state (see `jobs.benchmark.steady_state`). So starting the job does
not count, but finishing the last videos does. Certificates are off unless `--set fidelity.probes=...` turns them on.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import typer

from jobs.benchmark.clips import write_clips
from jobs.benchmark.copies import write_copies
from jobs.benchmark.film import FILMS, describe, film_files, film_kind
from jobs.benchmark.random_checkpoint import write_checkpoint
from jobs.benchmark.shapes import SHAPES
from jobs.benchmark.stages import StageRates, measure_stages
from jobs.benchmark.steady_state import Watch
from jobs.benchmark.timing import show
from jobs.cluster.session import start_ray
from jobs.command import ConfigOption, SetOption
from jobs.config import JobConfig
from jobs.indexing.driver import Driver
from sttm.config import index_recipe, load_config
from sttm.corpus.listing import list_corpus
from sttm.errors import ConfigError
from sttm.models.checkpoint import Checkpoint
from sttm.store.key import Recipe
from sttm.store.store import Store

_SCENES = 4  # different small clips


@dataclass(frozen=True)
class PipelineRow:
    """One run of the whole job.

    Attributes:
        gpus: GPUs that the job used; 0 means one actor on the CPU.
        videos: number of videos indexed.
        steady_videos: videos finished in steady state.
        steady_s: seconds of steady state.
        videos_per_s: videos per second in steady state.
        slowest_stage: the stage that alone takes the longest, with the same number of actors.
        of_slowest_stage: `videos_per_s`, divided by the rate of this stage alone.
        of_gpu_stage: `videos_per_s`, divided by the rate of the slowest stage on the GPU alone.
        efficiency: videos per second and actor, divided by those of the first run.
        idle_share: share of the actors' steady time in which their GPU (or on a CPU the model) had no work.
        decode_s: seconds from the beginning to the end of decoding a video, on average, beside everything else.
    """

    gpus: int
    videos: int
    steady_videos: int
    steady_s: float
    videos_per_s: float
    slowest_stage: str
    of_slowest_stage: float
    of_gpu_stage: float
    efficiency: float
    idle_share: float
    decode_s: float


@dataclass(frozen=True)
class _Videos:
    """Videos that are indexed again and again, each time as copies with other contents.

    Attributes:
        name: the kind of film, the folder, or `clips`.
        what: their number and size, and a description of the first one.
        files: the files.
    """

    name: str
    what: str
    files: list[Path]

    @classmethod
    def of(cls, name: str, files: list[Path]) -> "_Videos":
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        return cls(name, f"{len(files)} x {size_mb / len(files):.1f} MB, such as {describe(files[0])}", files)


def bench_pipeline(
    config: ConfigOption = "tiny",
    set_: SetOption = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help=f"use random weights of this architecture in place of model.path: {', '.join(SHAPES)}; default: none"
        ),
    ] = None,
    film: Annotated[
        list[str] | None,
        typer.Option(help=f"film to index, NAME or NAME:SECONDS; may be repeated; names: {', '.join(FILMS)}"),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="folder of videos, distinct copies of which are indexed; default: none")
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="one run for each number of GPUs, such as 1,2,4; 0 is one actor on the CPU")
    ] = "0",
    seconds: Annotated[float, typer.Option(min=0, help="about how many seconds of steady state a run lasts")] = 30,
    folder: Annotated[
        Path | None, typer.Option(help="folder that keeps random checkpoint and films for later runs; default: none")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="folder for copies and stores, which are deleted; default: a temporary folder")
    ] = None,
) -> None:
    """Compare the throughput of the index job with that of its slowest stage, and several GPUs with one.

    The videos are generated films, those of a folder, or else small clips, which cost little to decode. With --shape no
    checkpoint is needed. Each film, and the folder, ends with one line of JSON. Examples:

        python -m jobs.bench pipeline --film 720p24-h264 --film 1080p30-phone:60
        python -m jobs.bench pipeline --config qwen2_vl_7b --shape qwen2-vl-7b --gpus 1,2 --seconds 15 --corpus videos/
    """
    if shape is not None and shape not in SHAPES:
        raise ConfigError(f"no shape is named {shape!r}; choose one of {', '.join(SHAPES)}")
    counts = [int(count) for count in gpus.split(",")]
    kinds = [film_kind(text) for text in film or []]
    corpus_files = _files(corpus) if corpus is not None else []
    with tempfile.TemporaryDirectory(prefix="sttm-bench-") as temporary:
        where = folder or Path(temporary)
        with start_ray(None):
            _require_gpus(gpus, max(counts))
            job = _job(config, set_ or [], shape, where)
            sources = [_Videos.of(kind.file_name, [path]) for kind in kinds for path in film_files([kind], where)]
            sources += [_Videos.of(str(corpus), corpus_files)] if corpus_files else []
            for videos in sources or [_small_clips(Path(temporary) / "clips", job)]:
                bench = _Bench(store or where, job, seconds, videos)
                stages = bench.stages(counts)
                _show(stages)
                rows: list[PipelineRow] = []
                for count in counts:
                    rows.append(bench.run(count, stages, rows[0] if rows else None))
                    show([asdict(rows[-1])])
                _report(config, shape, videos, stages, rows, job)


def _require_gpus(gpus: str, most: int) -> None:
    if most > (there := int(ray.cluster_resources().get("GPU", 0))):
        raise ConfigError(f"--gpus {gpus}: Ray sees {there} GPUs on this machine; give at most that many")


def _job(config: str, overrides: list[str], shape: str | None, folder: Path) -> JobConfig:
    """The settings; with a shape, a random checkpoint is written into `folder` and takes the place of `model.path`."""
    overrides = ["fidelity.probes=[]", *overrides]
    if shape is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = write_checkpoint(SHAPES[shape], folder / shape, device)
        torch.cuda.empty_cache()
        overrides.append(f"model.path={path}")
    return load_config(JobConfig, config, overrides)


def _files(corpus: Path) -> list[Path]:
    """The videos of a folder."""
    if not corpus.is_dir():
        raise ConfigError(f"--corpus {corpus} is no folder of this machine; name a folder with videos")
    files = [Path(ref.uri.removeprefix("file://")) for ref in list_corpus(str(corpus))]
    if not files:
        raise ConfigError(f"--corpus {corpus} holds no video; name a folder with videos")
    return files


def _small_clips(folder: Path, job: JobConfig) -> _Videos:
    return _Videos.of("clips", write_clips(folder, _SCENES, max(8, ceil(job.video.max_frames * 2 / job.video.fps))))


class _Bench:
    """Runs the stages and the whole job over copies of the same videos."""

    def __init__(self, folder: Path, job: JobConfig, seconds: float, videos: _Videos) -> None:
        self._folder, self._job, self._seconds, self._videos = folder, job, seconds, videos
        self._recipe: Recipe = index_recipe(job.index, Checkpoint.open(job.model))

    def stages(self, counts: list[int]) -> StageRates:
        """Measure every stage alone."""
        refs = [ref for file in self._videos.files for ref in list_corpus(str(file))]
        with _scratch(self._folder) as scratch:
            workers = _decode_workers(max(counts))
            return measure_stages(self._with(max(counts)), self._recipe, _store(scratch), refs, workers)

    def run(self, count: int, stages: StageRates, first: PipelineRow | None) -> PipelineRow:
        """Run the index job over new videos into a new store, with `count` GPUs."""
        actors = self._actors(count)
        rates = stages.rates(actors)
        slowest = min(rates, key=lambda stage: rates[stage])
        held, workers = actors * self._job.run.in_flight, stages.decode_workers
        # 20 % more videos, because the first actor starts while the last one still loads its model; and whole rounds of
        # decoding, of which one or two pass before the steady state.
        needed = held + max(8, ceil(1.2 * self._seconds * rates[slowest]))
        videos = workers * max(ceil(needed / workers), 4)
        with _scratch(self._folder) as scratch:
            write_copies(scratch / "videos", self._videos.files, videos)
            watch = Watch(Store.open(_store(scratch)))
            job = self._with(count)
            refs = list_corpus(str(scratch / "videos"))
            Driver(job.index, job.run, self._recipe, _store(scratch), "bench", watch).run(refs)
            watch.close()
        steady = watch.steady_state(held)
        rate = steady.videos_per_s
        before = first.videos_per_s / self._actors(first.gpus) if first else rate / actors
        return PipelineRow(
            gpus=count,
            videos=videos,
            steady_videos=len(steady.rows),
            steady_s=round(steady.seconds, 3),
            videos_per_s=round(rate, 4),
            slowest_stage=slowest,
            of_slowest_stage=round(rate / rates[slowest], 4),
            of_gpu_stage=round(rate / stages.gpu_rate(actors), 4),
            efficiency=round(rate / actors / before, 4),
            idle_share=round(max(0.0, 1 - steady.gpu_s / steady.seconds / actors), 4),
            decode_s=round(steady.decode_s, 4),
        )

    def _actors(self, gpus: int) -> int:
        return max(1, gpus // self._job.run.gpus_per_model)

    def _with(self, gpus: int) -> JobConfig:
        return self._job.model_copy(update={"run": self._job.run.model_copy(update={"gpus": gpus})})


def _decode_workers(gpus: int) -> int:
    """Videos that can be decoded at a time: one for each core that no actor on the CPU takes."""
    return max(1, int(ray.cluster_resources()["CPU"]) - (not gpus))


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder with an empty store in it, deleted at the end of the `with` block."""
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        Store.open(_store(path), create=True)
        yield path
    finally:
        shutil.rmtree(path)


def _store(scratch: Path) -> str:
    return str(scratch / "store")


def _show(stages: StageRates) -> None:
    gpu_s = sum(stages.prefill_gpu_s.values())
    where = "actor" if stages.decode_on_gpu else "task"
    rows = [
        ("decode", where, stages.decode_workers, stages.decode, stages.decode_cpu_s, 0.0),
        ("prefill", "actor", 1, stages.prefill, stages.prefill_cpu_s, gpu_s),
        ("publish", "actor", 1, stages.publish, stages.publish_cpu_s, 0.0),
    ]
    names = ("stage", "in", "at a time", "videos/s", "CPU s a video", "GPU s a video")
    show([dict(zip(names, row, strict=True)) for row in rows])
    show([{f"{step}, GPU s a video": seconds for step, seconds in stages.prefill_gpu_s.items()}])
    show([{"cores that one actor needs": stages.cores_per_actor, "saving overhead": stages.saving_overhead}])


def _report(
    config: str, shape: str | None, videos: _Videos, stages: StageRates, rows: list[PipelineRow], job: JobConfig
) -> None:
    report: dict[str, Any] = {
        "bench": "pipeline",
        "config": config,
        "shape": shape,
        "videos": videos.name,
        "what": videos.what,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and rows[-1].gpus else "cpu",
        "cpus": int(ray.cluster_resources()["CPU"]),
        "frames": job.video.max_frames,
        "decoder": job.video.decoder,
        "certificate": bool(job.fidelity.probes),
        "stages": asdict(stages),
        "cores_per_actor": round(stages.cores_per_actor, 2),
        "saving_overhead": round(stages.saving_overhead, 4),
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(report), flush=True)
