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
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.indexer import GPU_STAGES, DecodedVideo, VideoReader
from sttm.store.key import Recipe

_SAMPLE = 3  # decoded videos with which the stages after decoding are measured again and again
_DECODING_S = 10.0  # about how long decoding is measured, but at least one video in each process


@dataclass(frozen=True)
class StageRates:
    """Videos per second, and seconds a video, of each stage while nothing else runs.

    Attributes:
        decode: videos per second of decoding by `decode_workers` processes, or by one actor if a GPU decodes.
        decode_workers: number of videos that the job may decode at a time.
        decode_on_gpu: whether the GPU of a prefill actor decodes.
        decode_cpu_s: CPU seconds (user and system) of decoding a video.
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
    decode_on_gpu: bool
    decode_cpu_s: float
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
    def cores_per_actor(self) -> float:
        """Cores that decode as fast as one prefill actor prefills."""
        return self.decode_cpu_s * self.prefill

    def rates(self, actors: int) -> dict[str, float]:
        """Videos per second of decode, prefill and publish alone, with this number of actors."""
        decoders = actors if self.decode_on_gpu else 1
        return {"decode": decoders * self.decode, "prefill": actors * self.prefill, "publish": actors * self.publish}

    def gpu_rate(self, actors: int) -> float:
        """Videos per second of the slowest stage on the GPUs alone, with this number of actors."""
        on_gpu = ("decode", "prefill") if self.decode_on_gpu else ("prefill",)
        return min(self.rates(actors)[stage] for stage in on_gpu)


def decodes_on_gpu(config: IndexConfig) -> bool:
    """Whether these settings let the GPU of the prefill actor decode."""
    return str(config.video.decoder) == "nvdec"


def measure_stages(
    job: JobConfig, recipe: Recipe, store_url: str, refs: Sequence[VideoRef], workers: int
) -> StageRates:
    """Measure one stage after the other on the Ray cluster that this process is connected to.

    Args:
        job: the settings.
        recipe: the recipe that follows from `job`.
        store_url: an existing store, into which the results are written.
        refs: videos to decode, in turn.
        workers: videos that are decoded at a time.
    """
    on_gpu = decodes_on_gpu(job.index)
    decoding = None if on_gpu else _decode_in_tasks(job.index, refs, workers)
    there = ray.cluster_resources().get("GPU", 0)
    resources = {"num_gpus": job.run.gpus_per_model} if there and job.run.gpus != 0 else {"num_cpus": 1}
    stages = ray.remote(**resources)(ActorStages).remote(job, recipe, store_url)
    decoding = decoding or _Decoding(*ray.get(stages.decode.remote(refs, workers)))
    found = ray.get(stages.measure.remote(decoding.sample, 12 if there else 6))
    ray.kill(stages)
    return StageRates(
        decode=decoding.rate, decode_workers=workers, decode_on_gpu=on_gpu, decode_cpu_s=decoding.cpu_s, **found
    )


class _Decoding(NamedTuple):
    """Videos per second, CPU seconds a video, and Ray's references of some decoded videos."""

    rate: float
    cpu_s: float
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
    return _Decoding(rate, sum(costs) / len(costs), [decoded for _, decoded in first[:_SAMPLE]])


def _rounds(seconds: float) -> int:
    """How often to do what took so many seconds, to measure for about `_DECODING_S`."""
    return max(1, math.ceil(_DECODING_S / seconds))


class _Cost(NamedTuple):
    """Calls per second of a step, and CPU seconds of a call, all threads of the process together."""

    rate: float
    cpu_s: float


class ActorStages:
    """A prefill actor whose steps are timed one by one."""

    def __init__(self, job: JobConfig, recipe: Recipe, store_url: str) -> None:
        self._actor = PrefillActor(job.index, recipe, store_url, "bench", job.run.prefill_timeout_s)
        self._actor.load()
        self._config, self._in_flight = job.index, job.run.in_flight

    def decode(self, refs: Sequence[VideoRef], threads: int) -> tuple[float, float, list[Any]]:
        """Decode on this actor's GPU; returns the parts of a `_Decoding`."""
        reader = VideoReader(self._config)
        started = time.perf_counter()
        sample = [ray.put(reader.read(refs[number % len(refs)])) for number in range(_SAMPLE)]
        rounds = _rounds(time.perf_counter() - started)
        cost = _cost(lambda i: reader.read(refs[i % len(refs)]), rounds * threads, threads)
        return (*cost, sample)

    def measure(self, refs: Sequence[Any], repeats: int) -> dict[str, Any]:
        """Measure all stages except decoding; returns the attributes of `StageRates` that belong to them."""
        sample: list[DecodedVideo] = ray.get(list(refs))
        indexer, gpu = self._actor.indexer, threading.Lock()

        def read_in(decoded: DecodedVideo) -> None:
            staged = indexer.stage(decoded)
            with gpu:
                clock = indexer.clock()
                result = indexer.read_in(staged, clock)
                clock.seconds()
            del result

        staged = [indexer.stage(decoded) for decoded in sample]
        prefilled = [indexer.prefill(video) for video in staged]
        names = iter(range(1 << 30))

        def another(number: int) -> DecodedVideo:
            """Give the pixels of a sample a new digest, so that it counts as a video that is not stored yet."""
            return replace(sample[number % len(sample)], content_digest=f"{next(names):064x}")

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
