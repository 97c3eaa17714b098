"""One video's way into the store, without Ray: read, prefill (GPU), digest, certify (GPU), publish.

The index job runs these steps in several processes and threads; the evaluation and the tests run them in one.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version

import torch

from sttm.certificate import ArithmeticCertificate
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.engine.arithmetic import round_and_compare
from sttm.engine.fidelity import certify
from sttm.engine.prefill import Prefilled, prefill, require_possible
from sttm.engine.ready_video import ready
from sttm.errors import ModelError, VideoError
from sttm.kv_cache import KVCache
from sttm.models.checkpoint import Checkpoint
from sttm.models.language_model import LanguageModel
from sttm.models.placement import Devices, as_devices, first_gpus
from sttm.models.video_inputs import VideoInputs
from sttm.stage_clock import StageClock
from sttm.store.artifact import Source
from sttm.store.catalog.row import CatalogRow
from sttm.store.facts import Facts, Provenance, Sampling
from sttm.store.key import Recipe, identity
from sttm.store.kv.download import Download, Downloaded
from sttm.store.kv.file import decode_kv
from sttm.store.kv.pack import EncodedKV, PackedKV, pack_kv
from sttm.store.store import Store
from sttm.store.tokens import write_tokens
from sttm.urls import redact_url
from sttm.video.decode import read_video

# The names in an artifact's `timings_s` of the stages in which the model's device works; `encode` is the vision tower.
GPU_STAGES = ("encode", "prefill", "pack", "certify")
DECODE_CPU = "decode_cpu"  # no stage of its own: the CPU seconds of the stage `decode`


@dataclass(frozen=True)
class DecodedVideo:
    """A video decoded and resized, ready for the vision tower.

    Attributes:
        source: the video file.
        inputs: uint8 frames, resized as the model's own processor resizes them.
        content_digest: blake3 of the file, hex.
        sampling: which frames were taken, and by which decoder.
        decode_s: seconds that decoding and resizing took.
        decode_cpu_s: CPU seconds of these.
    """

    source: Source
    inputs: VideoInputs
    content_digest: str
    sampling: Sampling
    decode_s: float
    decode_cpu_s: float


@dataclass(frozen=True)
class PrefilledVideo:
    """A prefilled video whose packed bytes may still be on their way from the GPU.

    Attributes:
        kv: the packed cache.
        write_tokens: makes the bytes of `tokens.parquet`; may be called after `arrived.wait()`.
        arrived: the copies that `write_tokens` reads.
        facts: what was found out so far.
        live: the unpacked cache, if probe questions will be asked of it; else None.
    """

    kv: PackedKV
    write_tokens: Callable[[], bytes]
    arrived: Downloaded
    facts: Facts
    live: KVCache | None


@dataclass(frozen=True)
class EncodedVideo:
    """A prefilled video as the bytes to store.

    Attributes:
        kv: the finished KV file.
        tokens: the bytes of the token table.
        facts: what was found out while the files were made.
    """

    kv: EncodedKV
    tokens: bytes
    facts: Facts


class VideoReader:
    """Decodes and resizes videos for one model. Needs no weights and no GPU."""

    def __init__(self, config: IndexConfig) -> None:
        self._video = config.video
        self._family = Checkpoint.open(config.model).family()

    def read(self, ref: VideoRef, *, on_gpu: bool = False) -> DecodedVideo:
        """Decode and resize one video.

        Args:
            ref: the video.
            on_gpu: decode on the current GPU, where the frames then stay.

        Raises:
            VideoError: the file cannot be used.
            sttm.video.nvdec.NotOnGpuError: with `on_gpu`, only a CPU can decode the video.
        """
        started, cpu_started = time.perf_counter(), time.thread_time()
        frames = read_video(ref, self._video, resizer=self._family.resizing, on_gpu=on_gpu)
        inputs = self._family.inputs(frames.pixels, frames.seconds)
        source = Source(ref.uri, ref.video_id, ref.name, frames.size_bytes, ref.version)
        seconds, counts = tuple(frames.seconds.tolist()), (frames.asked, frames.left_out)
        sampling = Sampling(seconds, frames.duration_s, frames.decoder, frames.warnings, *counts)
        took_s, cpu_s = time.perf_counter() - started, time.thread_time() - cpu_started
        return DecodedVideo(source, inputs, frames.content_digest, sampling, took_s, cpu_s)


class Indexer:
    """Turns decoded videos into artifacts of one store, with one model on its devices.

    Args:
        config: settings of the index.
        recipe: the recipe that `sttm.config.index_recipe` makes of these settings.
        store_url: URL of the store.
        run_id: name of the run, recorded in every artifact.
        device: where the model goes, one device or several (`sttm.models.placement`); None takes the first GPU, or the
            CPU.

    Raises:
        ConfigError: with these settings, this model can index no video.
        ModelError: the checkpoint cannot be used, or there are more devices than layers.
    """

    def __init__(
        self, config: IndexConfig, recipe: Recipe, store_url: str, run_id: str, device: Devices | None = None
    ) -> None:
        self._config, self._recipe, self._run_id = config, recipe, run_id
        self._store = Store.open(store_url)
        devices = as_devices(device or first_gpus(1))
        self._checkpoint = checkpoint = Checkpoint.open(config.model)
        require_possible(checkpoint.config.get_text_config(), config.merge, config.prefill)
        self._family = checkpoint.family()
        # With probe questions, the first video shows what FP8 changes, and the model is rounded then.
        self._must_compare = config.model.is_fp8 and bool(config.fidelity.probes)
        self._arithmetic: ArithmeticCertificate | None = None
        self._model = checkpoint.load_model(devices, with_fp8=not self._must_compare)
        self._devices = {parameter.device for parameter in self._model.parameters()}
        # FFmpeg copies the frames that it decodes on a GPU in the default stream, which shall not wait for a prefill.
        self._stream = torch.cuda.Stream(devices[0]) if devices[0].type == "cuda" else None
        self._language_model = LanguageModel.of(self._model)
        self._probes = [self._family.question_ids(probe) for probe in config.fidelity.probes]
        self._provenance = Provenance(
            model=checkpoint.name,
            commit=checkpoint.commit,
            torch=str(torch.__version__),
            transformers=version("transformers"),
            device=torch.cuda.get_device_name(devices[0]) if devices[0].type == "cuda" else "cpu",
            chunk_tokens=config.prefill.chunk_tokens,
        )

    def stored(self, decoded: DecodedVideo) -> CatalogRow | None:
        """A catalog row for the video if its content is in the store already, under any name; else None."""
        name = identity(self._recipe, decoded.content_digest)
        return self._store.row_for(name, decoded.source) if self._store.has(name) else None

    def stage(self, decoded: DecodedVideo) -> DecodedVideo:
        """The video with its pixels in page-locked memory, if the model is on a GPU, which then copies them faster.

        This copies the pixels, so it is best done while the GPU works on another video.
        """
        is_on_gpu = any(device.type == "cuda" for device in self._devices)
        return replace(decoded, inputs=decoded.inputs.page_locked()) if is_on_gpu else decoded

    def read_in(self, decoded: DecodedVideo, clock: StageClock) -> Prefilled:
        """Run the vision tower and the prefill; does not wait for a GPU.

        Args:
            decoded: the video.
            clock: gets the ends of the stages `encode` (the vision tower) and `prefill`.
        """
        prompt = self._family.prompt(self._model, decoded.inputs)
        clock.end("encode")
        result = prefill(self._language_model, prompt, self._config.merge, self._config.prefill)
        clock.end("prefill")
        return result

    def clock(self) -> StageClock:
        """A clock for stages on the model's devices; the first stage starts now."""
        return StageClock(self._devices)

    def prefill(self, decoded: DecodedVideo) -> PrefilledVideo:
        """Run the vision tower and the prefill, and pack the cache on its device; returns when the device is done.

        Copies to the CPU may still be on their way. With `model.dtype: fp8`, the first call also compares FP8 with
        bfloat16, if there are probe questions.

        Raises:
            VideoError: the video is too long.
            ModelError: FP8 changes the answers by more than `fidelity.max_kl`.
        """
        with torch.cuda.stream(self._stream):
            return self._prefill(decoded)

    def _prefill(self, decoded: DecodedVideo) -> PrefilledVideo:
        spent = {"decode": decoded.decode_s, DECODE_CPU: decoded.decode_cpu_s}
        if self._must_compare:
            spent["compare"] = self._compare_arithmetic(decoded)
        clock, download = self.clock(), Download()
        result = self.read_in(decoded, clock)
        merged, cache = result.merged, result.cache
        features, index = download.fetch(merged.features), download.fetch(merged.index)
        scheme, below = self._config.store.kv_scheme, self._config.store.kv_scheme_below
        kv = pack_kv(cache, scheme, asdict(self._provenance), below, download)
        clock.end("pack")
        thresholds = {"spatial": merged.spatial_threshold, "temporal": merged.temporal_threshold}
        facts = Facts(
            tokens_before=decoded.inputs.tokens,
            tokens_after=len(merged.patches),
            thresholds={name: float(value) for name, value in thresholds.items() if value is not None},
            timings_s={**spent, **clock.seconds()},
            run_id=self._run_id,
            sampling=decoded.sampling,
            provenance=self._provenance,
            arithmetic=self._arithmetic,
        )
        tables = (cache.boxes, cache.patches, index, cache.frame_seconds, features, cache.grid)
        live = cache if self._probes else None
        return PrefilledVideo(kv, partial(write_tokens, *tables), download.started(), facts, live)

    def _compare_arithmetic(self, decoded: DecodedVideo) -> float:
        """Round the model to FP8, with this video as the sample. Returns the seconds that it took."""
        fidelity, clock = self._config.fidelity, self.clock()

        def read_in() -> KVCache:
            return self.read_in(decoded, self.clock()).cache

        found = round_and_compare(self._checkpoint, self._model, read_in, self._probes, fidelity.tokens)
        self._must_compare = False
        self._arithmetic = ArithmeticCertificate("bfloat16", decoded.content_digest, **asdict(found))
        if fidelity.max_kl is not None and not found.kl_mean <= fidelity.max_kl:
            raise ModelError(
                f"model.dtype=fp8 changes the answers about {redact_url(decoded.source.uri)} by {found.kl_mean:.3g} "
                f"nats a token against bfloat16, more than fidelity.max_kl={fidelity.max_kl:g}; set "
                "model.dtype=bfloat16, or allow more"
            )
        clock.end("compare")
        return clock.seconds()["compare"]

    def digest(self, prefilled: PrefilledVideo) -> EncodedVideo:
        """Wait for the packed bytes, check and digest them, and write the token table; needs no GPU.

        Raises:
            StoreError: the cache holds numbers that its scheme cannot store.
        """
        started = time.perf_counter()
        prefilled.arrived.wait()
        with ThreadPoolExecutor(1, "token-table") as thread:  # compressing takes about as long as digesting
            tokens = thread.submit(prefilled.write_tokens)
            kv = prefilled.kv.encode()
        facts = _timed(prefilled.facts, "digest", time.perf_counter() - started)
        return EncodedVideo(kv, tokens.result(), facts)

    def certify(self, decoded: DecodedVideo, prefilled: PrefilledVideo, encoded: EncodedVideo) -> EncodedVideo:
        """Compare answers to the probe questions from the live cache and from the stored bytes.

        Args:
            decoded: the video.
            prefilled: the video after `prefill`, with the live cache.
            encoded: the bytes to store.

        Returns:
            `encoded` with a certificate in its facts, or unchanged if there are no probe questions.

        Raises:
            VideoError: the packed cache is less faithful than `fidelity.max_kl` allows.
        """
        if prefilled.live is None:
            return encoded
        model, fidelity = self._language_model, self._config.fidelity
        where = redact_url(decoded.source.uri)
        with torch.cuda.stream(self._stream):
            clock = self.clock()
            stored = decode_kv(encoded.kv.data, where, model.device)
            found = certify(model, ready(model, prefilled.live), ready(model, stored), self._probes, fidelity.tokens)
            clock.end("certify")
            certify_s = clock.seconds()["certify"]
        if fidelity.max_kl is not None and not found.kl_mean <= fidelity.max_kl:
            scheme = self._config.store.kv_scheme
            raise VideoError(
                "unfaithful_cache",
                f"{where}: the {scheme} cache differs from the live one by {found.kl_mean:.3g} nats a "
                f"token, more than fidelity.max_kl={fidelity.max_kl:g}; choose a finer store.kv_scheme, such as exact",
            )
        facts = _timed(encoded.facts, "certify", certify_s)
        return replace(encoded, facts=replace(facts, certificate=found))

    def publish(self, decoded: DecodedVideo, encoded: EncodedVideo) -> CatalogRow:
        """Write the artifact and commit it.

        Returns:
            The catalog row of the artifact. The caller adds it to the catalog.

        Raises:
            StoreError: a write failed; nothing was committed.
        """
        return self._store.publish(
            self._recipe, decoded.content_digest, decoded.source, encoded.kv, encoded.tokens, encoded.facts
        )

    def index(self, decoded: DecodedVideo) -> CatalogRow:
        """Prefill, digest, certify and publish one video.

        Returns:
            The catalog row of the artifact. The caller adds it to the catalog.

        Raises:
            VideoError: the video is too long, or the packed cache is less faithful than `fidelity.max_kl` allows.
            StoreError: the cache cannot be stored under its scheme, or a write failed.
        """
        prefilled = self.prefill(decoded)
        encoded = self.certify(decoded, prefilled, self.digest(prefilled))
        return self.publish(decoded, encoded)


def _timed(facts: Facts, stage: str, seconds: float) -> Facts:
    return replace(facts, timings_s={**facts.timings_s, stage: seconds})
