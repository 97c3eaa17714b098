"""Measure each stage of the index job alone, to compare the throughput of the whole job with its slowest stage."""

import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ray

from jobs.config import JobConfig
from jobs.indexing.actor import PrefillActor
from jobs.indexing.schedule import DeviceDecoding, device_decoding
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.errors import ConfigError
from sttm.indexer import GPU_STAGES, DecodedVideo, VideoReader
from sttm.store.key import Recipe
from sttm.urls import redact_url
from sttm.video.nvdec import NotOnGpuError

_SAMPLE = 3  # decoded videos with which the stages after decoding are measured again and again
_DECODING_S = 10.0  # about how long decoding is measured, but at least one video in each process
_MOST_GPU_ROUNDS = 8  # videos that a GPU decodes at a time slow each other down, so the first alone says little


@dataclass(frozen=True)
class StageRates:
    """Videos per second, and seconds a video, of each stage while nothing else runs.

    Attributes:
        decode: videos per second of decoding by `decode_workers` processes; 0 if CPUs shall not decode.
        decode_workers: number of videos that the CPUs decode at a time.
        decode_cpu_s: CPU seconds (user and system) of decoding a video in such a process.
        gpu_decode: videos per second of decoding by the GPU of one actor; 0 if it shall not, or cannot.
        gpu_decode_cpu_s: CPU seconds of decoding a video on the GPU.
        prefill: videos per second of vision tower, prefill and packing by one actor.
        prefill_cpu_s: CPU seconds of handing this work to the GPU; without a GPU, of doing it.
        prefill_gpu_s: seconds of the GPU (or of the CPU, where there is no GPU) by step, for a video.
        publish: videos per second of digests, token table and writing of packed videos by one actor.
        publish_cpu_s: CPU seconds of this stage for a video.
        prefill_only: videos per second of vision tower and prefill by one actor, with pixels prepared as in the job,
            and nothing stored.
        prefill_and_save: videos per second of everything that one actor does in the job, with all results stored.
    """

    decode: float
    decode_workers: int
    decode_cpu_s: float
    gpu_decode: float
    gpu_decode_cpu_s: float
    prefill: float
    prefill_cpu_s: float
    prefill_gpu_s: dict[str, float]
    publish: float
    publish_cpu_s: float
    prefill_only: float
    prefill_and_save: float

    @property
    def saving_overhead(self) -> float:
        """The time that saving adds to a prefill, as a share of the prefill's time."""
        return self.prefill_only / self.prefill_and_save - 1

    @property
    def cores_per_actor(self) -> float | None:
        """Cores that decode as fast as one prefill actor prefills; None if CPUs shall not decode."""
        return self.decode_cpu_s * self.prefill if self.decode else None

    def rates(self, actors: int) -> dict[str, float]:
        """Videos per second of decode, prefill and publish alone, with this number of actors.

        Where CPUs and GPUs decode, both count.
        """
        decode = self.decode + actors * self.gpu_decode
        return {"decode": decode, "prefill": actors * self.prefill, "publish": actors * self.publish}

    def gpu_rate(self, actors: int) -> float:
        """Videos per second of the slowest stage that the GPUs alone do, with this number of actors."""
        rates = self.rates(actors)
        return rates["prefill"] if self.decode else min(rates["prefill"], rates["decode"])


def measure_stages(
    job: JobConfig, recipe: Recipe, store_url: str, refs: Sequence[VideoRef], workers: int
) -> StageRates:
    """Measure one stage after the other on the Ray cluster that this process is connected to.

    Args:
        job: the settings.
        recipe: the recipe that follows from `job`.
        store_url: an existing store, into which the results are written.
        refs: videos to decode, in turn.
        workers: videos that the CPUs decode at a time.

    Raises:
        ConfigError: `video.decoder` is nvdec, and the GPU cannot decode the videos.
    """
    when, there = device_decoding(job.video.decoder), ray.cluster_resources().get("GPU", 0)
    on_cpu = None if when is DeviceDecoding.ALWAYS else _decode_in_tasks(job.index, refs, workers)
    resources = {"num_gpus": job.run.gpus_per_model} if there and job.run.gpus != 0 else {"num_cpus": 1}
    stages = ray.remote(**resources)(ActorStages).remote(job, recipe, store_url)
    on_gpu = _Cost(0.0, 0.0) if when is DeviceDecoding.NEVER else ray.get(stages.decode.remote(refs))
    if on_cpu is None and not on_gpu.rate:
        raise ConfigError(f"{redact_url(refs[0].uri)}: the GPU cannot decode this video; set video.decoder to auto")
    found = ray.get(stages.measure.remote(on_cpu.sample if on_cpu else refs[:_SAMPLE], 12 if there else 6))
    ray.kill(stages)
    return StageRates(
        decode=on_cpu.cost.rate if on_cpu else 0.0,
        decode_workers=workers,
        decode_cpu_s=on_cpu.cost.cpu_s if on_cpu else 0.0,
        gpu_decode=on_gpu.rate,
        gpu_decode_cpu_s=on_gpu.cpu_s,
        **found,
    )


class _Cost(NamedTuple):
    """Calls per second of a step, and CPU seconds of a call."""

    rate: float
    cpu_s: float


class _Decoding(NamedTuple):
    """The cost of decoding, and Ray's references of some decoded videos."""

    cost: _Cost
    sample: list[Any]


@functools.lru_cache(maxsize=1)
def _reader(config: IndexConfig) -> VideoReader:
    return VideoReader(config)


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def _decode(ref: VideoRef, config: IndexConfig) -> tuple[float, DecodedVideo]:
    """Decode a video as a task of the job does; returns CPU seconds and, as another object of Ray, the video."""
    reader = _reader(config)
    started = time.process_time()
    decoded = reader.read(ref)
    return time.process_time() - started, decoded


def _decode_in_tasks(config: IndexConfig, refs: Sequence[VideoRef], workers: int) -> _Decoding:
    def decode(ref: VideoRef) -> tuple[float, Any]:
        cpu_s, decoded = _decode.remote(ref, config)
        return ray.get(cpu_s), decoded

    with ThreadPoolExecutor(workers) as threads:
        started = time.perf_counter()
        first = list(threads.map(decode, itertools.islice(itertools.cycle(refs), workers)))  # starts the processes
        rounds = _rounds(time.perf_counter() - started)
        started = time.perf_counter()
        videos = itertools.islice(itertools.cycle(refs), rounds * workers)
        costs = [cpu_s for cpu_s, _ in threads.map(decode, videos)]
        rate = len(costs) / (time.perf_counter() - started)
    return _Decoding(_Cost(rate, sum(costs) / len(costs)), [decoded for _, decoded in first[:_SAMPLE]])


def _rounds(seconds: float) -> int:
    """How often to do what took so many seconds, to measure for about `_DECODING_S`."""
    return max(1, math.ceil(_DECODING_S / seconds))


class ActorStages:
    """A prefill actor whose steps are timed one by one."""

    def __init__(self, job: JobConfig, recipe: Recipe, store_url: str) -> None:
        self._actor = PrefillActor(job.index, recipe, store_url, "bench", job.run.prefill_timeout_s)
        self._decodes = self._actor.load().decodes
        self._config, self._in_flight = job.index, job.run.in_flight

    def decode(self, refs: Sequence[VideoRef]) -> _Cost:
        """Decode on this actor's GPU, as many videos at a time as in the job; costs nothing where it cannot."""
        if not self._decodes:
            return _Cost(0.0, 0.0)
        reader = VideoReader(self._config)

        def decode(number: int) -> None:
            reader.read(refs[number % len(refs)], on_gpu=True)

        try:
            started = time.perf_counter()
            decode(0)
            rounds = _rounds(time.perf_counter() - started)
            return _cost(decode, min(rounds, _MOST_GPU_ROUNDS) * self._decodes, self._decodes)
        except NotOnGpuError:
            return _Cost(0.0, 0.0)

    def measure(self, sample: Sequence[Any], repeats: int) -> dict[str, Any]:
        """Measure all stages except decoding.

        Args:
            sample: videos to decode on this actor's GPU, or Ray's references of decoded videos.
            repeats: how often each stage is measured.

        Returns:
            The attributes of `StageRates` that belong to these stages.
        """
        reader = VideoReader(self._config)
        decoded: list[DecodedVideo] = [
            reader.read(video, on_gpu=True) if isinstance(video, VideoRef) else ray.get(video) for video in sample
        ]
        indexer, gpu = self._actor.indexer, threading.Lock()

        def read_in(video: DecodedVideo) -> None:
            ready = indexer.stage(video)
            with gpu:
                clock = indexer.clock()
                result = indexer.read_in(ready, clock)
                clock.seconds()
            del result

        staged = [indexer.stage(video) for video in decoded]
        prefilled = [indexer.prefill(video) for video in staged]
        names = iter(range(1 << 30))

        def another(number: int) -> DecodedVideo:
            """Give the pixels of a sample a new digest, so that it counts as a video that is not stored yet."""
            return replace(decoded[number % len(decoded)], content_digest=f"{next(names):064x}")

        timings: list[Mapping[str, float]] = []
        steps: dict[str, tuple[int, Callable[[int], object]]] = {
            "prefill": (1, lambda i: timings.append(indexer.prefill(staged[i % len(staged)]).facts.timings_s)),
            "publish": (1, lambda i: indexer.publish(another(i), indexer.digest(prefilled[i % len(prefilled)]))),
            "prefill_only": (self._in_flight, lambda i: read_in(another(i))),
            "prefill_and_save": (self._in_flight, lambda i: self._actor.index(another(i))),
        }
        costs = {name: _cost(step, repeats, threads) for name, (threads, step) in steps.items()}
        measured = timings[-repeats:]
        return {
            **{name: cost.rate for name, cost in costs.items()},
            **{f"{name}_cpu_s": costs[name].cpu_s for name in ("prefill", "publish")},
            "prefill_gpu_s": {
                step: sum(t[step] for t in measured) / repeats for step in GPU_STAGES if step in measured[0]
            },
        }


def _cost(step: Callable[[int], object], repeats: int, threads: int) -> _Cost:
    """Time a step by several threads, from the end of the warm-up calls to the end of the last call.

    The threads overlap as in the job: what one does while another uses the GPU costs no time.
    """

    def ended(number: int) -> tuple[float, float]:
        step(number)
        return time.perf_counter(), time.process_time()

    warm = max(2, threads)
    with ThreadPoolExecutor(threads) as pool:
        ends = sorted(pool.map(ended, range(warm + repeats)))
    (start_s, start_cpu_s), (end_s, end_cpu_s) = ends[warm - 1], ends[-1]
    return _Cost(repeats / (end_s - start_s), (end_cpu_s - start_cpu_s) / repeats)
