"""What runs for the index job in Ray's processes: the decoding of one video, and the actor that prefills on one GPU."""

import functools
import threading
from typing import Any

import ray

from jobs.limits import allocating_at_most, killed_after
from sttm.config import IndexConfig
from sttm.corpus import VideoRef
from sttm.indexer import DecodedVideo, Indexer, VideoReader
from sttm.store.catalog import CatalogRow
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
    return (decoded.inputs.pixels.nbytes, len(decoded.details["seconds"])), decoded


class PrefillActor:
    """One model on one GPU (or CPU). Two videos at a time: one is stored while the next is prefilled."""

    def __init__(self, config_json: str, recipe: Recipe, store_url: str, run_id: str, timeout_s: float) -> None:
        config = IndexConfig.model_validate_json(config_json)
        self._indexer = Indexer(config, recipe, store_url, run_id)
        self._gpu = threading.Lock()
        self._timeout_s = timeout_s

    def ready(self) -> bool:
        """Returns once the model is loaded."""
        return True

    def index(self, decoded: DecodedVideo) -> CatalogRow:
        """Prefill and store one decoded video; its catalog row. Content that is stored already is not prefilled."""
        if row := self._indexer.stored(decoded):
            return row
        with self._gpu, killed_after(self._timeout_s):
            prefilled = self._indexer.prefill(decoded)
        return self._indexer.publish(decoded, prefilled)
