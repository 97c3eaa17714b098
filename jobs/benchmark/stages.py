"""Measure each stage of the index job alone, to compare the throughput of the whole job with its slowest stage."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ray

from jobs.config import JobConfig
from jobs.indexing.actor import PrefillActor, decode_video
from sttm.corpus.listing import VideoRef
from sttm.indexer import DecodedVideo
from sttm.store.key import Recipe

SAMPLE = 3  # decoded videos with which the stages after decoding are measured again and again


@dataclass(frozen=True)
class StageRates:
    """Videos per second of each stage while nothing else runs.

    Attributes:
        decode: decoding by `decode_workers` processes.
        decode_workers: number of decoding processes that the job may run at a time.
        prefill: vision tower, prefill and packing by one actor.
        publish: digests, token table and writing of packed videos by one actor.
        prefill_only: vision tower and prefill by one actor, with pixels prepared as in the job, and nothing stored.
        prefill_and_save: everything that one actor does in the job, with all results stored.
    """

    decode: float
    decode_workers: int
    prefill: float
    publish: float
    prefill_only: float
    prefill_and_save: float

    @property
    def saving_overhead(self) -> float:
        """The time that saving adds to a prefill, as a share of the prefill's time."""
        return self.prefill_only / self.prefill_and_save - 1


def measure_stages(
    job: JobConfig, recipe: Recipe, store_url: str, refs: Sequence[VideoRef], workers: int
) -> StageRates:
    """Measure one stage after the other on the Ray cluster that this process is connected to.

    Args:
        job: the settings.
        recipe: the recipe that follows from `job`.
        store_url: an existing store, into which the results are written.
        refs: videos to decode.
        workers: processes that decode.
    """
    limits = (job.run.decode_timeout_s, job.run.decode_memory_bytes)

    def decode(ref: VideoRef) -> Any:
        size, decoded = decode_video.remote(ref, job.index, *limits)
        ray.wait([size], fetch_local=False)
        return decoded

    with ThreadPoolExecutor(workers) as threads:
        sample = list(threads.map(decode, refs[:workers]))[:SAMPLE]  # this also starts the worker processes
        started = time.perf_counter()
        done = sum(1 for _ in threads.map(decode, refs))
        decode_rate = done / (time.perf_counter() - started)
    there = ray.cluster_resources().get("GPU", 0)
    resources = {"num_gpus": job.run.gpus_per_model} if there and job.run.gpus != 0 else {"num_cpus": 1}
    stages = ray.remote(**resources)(_Stages).remote(job, recipe, store_url)
    rates = ray.get(stages.measure.remote(sample, 12 if there else 6))
    ray.kill(stages)
    return StageRates(decode=decode_rate, decode_workers=workers, **rates)


class _Stages:
    """A prefill actor whose steps are timed one by one."""

    def __init__(self, job: JobConfig, recipe: Recipe, store_url: str) -> None:
        self._actor = PrefillActor(job.index, recipe, store_url, "bench", job.run.prefill_timeout_s)
        self._actor.load()
        self._in_flight = job.run.in_flight

    def measure(self, refs: Sequence[Any], repeats: int) -> dict[str, float]:
        """Videos per second of all stages except decoding."""
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

        steps: dict[str, tuple[int, Callable[[int], object]]] = {
            "prefill": (1, lambda i: indexer.prefill(staged[i % len(staged)])),
            "publish": (1, lambda i: indexer.publish(another(i), indexer.digest(prefilled[i % len(prefilled)]))),
            "prefill_only": (self._in_flight, lambda i: read_in(another(i))),
            "prefill_and_save": (self._in_flight, lambda i: self._actor.index(another(i))),
        }
        return {name: _rate(step, repeats, threads) for name, (threads, step) in steps.items()}


def _rate(step: Callable[[int], object], repeats: int, threads: int) -> float:
    """Calls per second of a step by several threads, from the end of the warm-up calls to the end of the last call.

    The threads overlap as in the job: what one does while another uses the GPU costs no time.
    """

    def ended(number: int) -> float:
        step(number)
        return time.perf_counter()

    warm = max(2, threads)
    with ThreadPoolExecutor(threads) as pool:
        ends = sorted(pool.map(ended, range(warm + repeats)))
    return repeats / (ends[-1] - ends[warm - 1])
