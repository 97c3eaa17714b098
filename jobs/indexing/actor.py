"""The two pieces of the index job that Ray runs: a task that decodes one video, and an actor that prefills on a GPU."""

import functools
import resource
import threading
from dataclasses import dataclass
from typing import Any

import ray
import torch

from jobs.cluster.process_limits import (
    allocating_at_most,
    ended_by_a_lost_gpu,
    killed_after,
    yielding_to_others,
)
from jobs.cluster.session import given_devices
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.errors import ConfigError
from sttm.indexer import GPU_STAGES, DecodedVideo, Indexer, VideoReader
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe
from sttm.video.nvdec import NotOnGpuError, cannot_decode_because

_DEVICE_DECODES = 6  # videos at a time; an H200 has seven decoding engines, and one video leaves most of them idle


@functools.lru_cache(maxsize=1)
def _reader(config: IndexConfig) -> VideoReader:
    """The reader of this process: it keeps the tokenizer and the processor, which take seconds to load."""
    return VideoReader(config)


@dataclass(frozen=True)
class Decoded:
    """What the driver learns of a decoded video.

    Attributes:
        frames: number of frames.
        frame_bytes: bytes of their pixels.
        memory_bytes: the most memory that the decoding process has held so far, resident.
    """

    frames: int
    frame_bytes: int
    memory_bytes: int


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def decode_video(ref: VideoRef, config: IndexConfig, timeout_s: float, memory_bytes: int) -> tuple[Decoded, Any]:
    """Decode and resize one video.

    Args:
        ref: the video.
        config: settings of the index.
        timeout_s: seconds after which this process is killed.
        memory_bytes: bytes that this process may allocate meanwhile.

    Returns:
        Two Ray objects: a `Decoded`, which the driver fetches, and the `DecodedVideo`, which goes to an actor without
        passing through the driver.

    Raises:
        VideoError: the file cannot be used.
    """
    reader = _reader(config)
    with killed_after(timeout_s), allocating_at_most(memory_bytes), yielding_to_others():
        decoded = reader.read(ref)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Decoded(len(decoded.sampling.seconds), decoded.inputs.pixels.nbytes, peak), decoded


@dataclass(frozen=True)
class Indexed:
    """A video that the actor has put into the store, or found there.

    Attributes:
        row: the video's catalog row.
        gpu_s: seconds that the GPU (or the CPU, where there is no GPU) has just worked on the video; 0 if its content
            was stored already.
    """

    row: CatalogRow
    gpu_s: float


@dataclass(frozen=True)
class Refused:
    """A video that the device of an actor cannot decode, though it may be sound.

    Attributes:
        reason: why not, such as the codec; the same words for all videos with the same cause.
    """

    reason: str


@dataclass(frozen=True)
class Device:
    """What an actor says about its device once it has loaded.

    Attributes:
        decodes: videos that the device can decode at a time, beside a prefill; 0 if it cannot decode.
        cannot_decode_because: why a GPU that should decode cannot, for the person who reads the log; else empty.
    """

    decodes: int
    cannot_decode_because: str = ""


class PrefillActor:
    """One model on its GPUs (or on the CPU) that indexes a few videos at a time.

    Only one video is on the GPU. Meanwhile the bytes of the video before are digested and stored, and the pixels of the
    next one are copied to page-locked memory.

    Args:
        config: settings of the index.
        recipe: the recipe that `config` amounts to.
        store_url: URL of the store.
        run_id: name of the run, recorded in every artifact.
        timeout_s: seconds of work on the GPU for one video after which this process is killed.
        decode_timeout_s: seconds of decoding one video after which this process is killed.

    Attributes:
        indexer: holds the model; there is none before `load`.
    """

    indexer: Indexer

    def __init__(
        self,
        config: IndexConfig,
        recipe: Recipe,
        store_url: str,
        run_id: str,
        timeout_s: float,
        decode_timeout_s: float = 300.0,
    ) -> None:
        self._made_with = (config, recipe, store_url, run_id)
        self._timeout_s, self._decode_timeout_s = timeout_s, decode_timeout_s
        self._gpu = threading.Lock()

    def load(self) -> Device:
        """Load the model onto the devices that Ray gave this actor.

        Raises:
            ConfigError: a setting that no video could be indexed with by this model, or on this device.
            ModelError: the checkpoint cannot be used.
        """
        self.indexer = Indexer(*self._made_with, given_devices())
        decoder = self._made_with[0].video.decoder
        if decoder not in ("auto", "nvdec") or (decoder == "auto" and not torch.cuda.is_available()):
            return Device(0)
        if cause := cannot_decode_because():
            if decoder == "nvdec":
                raise ConfigError(f"video.decoder is nvdec, but {cause}; or set video.decoder to auto")
            return Device(0, cause)
        self._reader = VideoReader(self._made_with[0])
        return Device(_DEVICE_DECODES)

    def index(self, decoded: DecodedVideo) -> Indexed:
        """Prefill and store one decoded video. Content that is stored already is not prefilled.

        Raises:
            VideoError: the video cannot be indexed.
            StoreError: the store does not take the artifact.
        """
        with ended_by_a_lost_gpu():
            return self._index(decoded)

    def decode_and_index(self, ref: VideoRef) -> Indexed | Refused:
        """Decode one video beside the prefill of others, then prefill and store it.

        Returns:
            What was indexed; `Refused` if a CPU has to decode the video.

        Raises:
            VideoError: the file cannot be used, or the video cannot be indexed.
            StoreError: the store does not take the artifact.
        """
        with ended_by_a_lost_gpu():
            try:
                with killed_after(self._decode_timeout_s):
                    decoded = self._reader.read(ref, on_gpu=True)
            except NotOnGpuError as error:
                return Refused(f"their GPU cannot decode {error}")
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
        del staged, prefilled  # frees the memory of pixels and cache for the next video
        row = self.indexer.publish(decoded, encoded)
        return Indexed(row, sum(row.timings_s[stage] for stage in GPU_STAGES if stage in row.timings_s))
