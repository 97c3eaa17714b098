"""What runs for the index job in Ray's processes: the decoding of one video, and the actor that prefills on one GPU."""

import functools
import threading
from dataclasses import dataclass
from typing import Any

import ray

from jobs.cluster.process_limits import allocating_at_most, ended_by_a_lost_gpu, killed_after
from jobs.cluster.session import given_devices
from sttm.config import IndexConfig
from sttm.corpus import VideoRef
from sttm.indexer import GPU_STAGES, DecodedVideo, Indexer, VideoReader
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe


@functools.lru_cache(maxsize=1)
def _reader(config_json: str) -> VideoReader:
    """One a worker process: tokenizer and processor load once."""
    return VideoReader(IndexConfig.model_validate_json(config_json))


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def decode_video(ref: VideoRef, config_json: str, timeout_s: float, memory_bytes: int) -> tuple[tuple[int, int], Any]:
    """Decode and resize one video; its bytes and frames are counted beside it, so that the driver need not fetch it."""
    reader = _reader(config_json)
    with killed_after(timeout_s), allocating_at_most(memory_bytes):
        decoded = reader.read(ref)
    return (decoded.inputs.pixels.nbytes, len(decoded.sampling.seconds)), decoded


@dataclass(frozen=True)
class Indexed:
    """What the actor did about one video.

    Attributes:
        row: its catalog row.
        gpu_s: seconds of the GPU's time (the CPU's, where there is none) that went into it just now.
    """

    row: CatalogRow
    gpu_s: float


class PrefillActor:
    """One model on one GPU (or CPU), a few videos at a time, only one of them on the GPU.

    While one is prefilled, the bytes of the one before are digested and stored, and the pixels of the next laid ready.
    """

    def __init__(self, config_json: str, recipe: Recipe, store_url: str, run_id: str, timeout_s: float) -> None:
        config = IndexConfig.model_validate_json(config_json)
        self.indexer = Indexer(config, recipe, store_url, run_id, given_devices())
        self._gpu = threading.Lock()
        self._timeout_s = timeout_s

    def ready(self) -> bool:
        """Returns once the model is loaded."""
        return True

    def index(self, decoded: DecodedVideo) -> Indexed:
        """Prefill and store one decoded video. Content that is stored already is not prefilled."""
        with ended_by_a_lost_gpu():
            return self._index(decoded)

    def _index(self, decoded: DecodedVideo) -> Indexed:
        if row := self.indexer.stored(decoded):
            return Indexed(row, 0.0)
        staged = self.indexer.stage(decoded)
        with self._gpu, killed_after(self._timeout_s):
            prefilled = self.indexer.prefill(staged)
        encoded = self.indexer.digest(prefilled)
        if prefilled.live is not None:
            with self._gpu, killed_after(self._timeout_s):
                encoded = self.indexer.certify(staged, prefilled, encoded)
        del staged, prefilled  # the memory of pixels and cache is the next video's
        row = self.indexer.publish(decoded, encoded)
        return Indexed(row, sum(row.timings_s[stage] for stage in GPU_STAGES if stage in row.timings_s))
