"""One video's way into the store, without Ray: read (CPU), prefill (GPU), publish (network).

The index job runs the same three steps in different processes; the evaluation and the tests run them in one.
"""

import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from sttm.config import IndexConfig
from sttm.corpus import VideoRef
from sttm.engine.answer import ready
from sttm.engine.fidelity import certify
from sttm.engine.prefill import Prefilled, prefill
from sttm.errors import VideoError
from sttm.kv_cache import KVCache
from sttm.models.base import VideoInputs
from sttm.models.checkpoint import Checkpoint
from sttm.models.language_model import LanguageModel
from sttm.store.artifact import Facts, Source
from sttm.store.catalog import CatalogRow
from sttm.store.key import Recipe, identity
from sttm.store.kv import EncodedKV, decode_kv, encode_kv
from sttm.store.store import Store
from sttm.store.tokens import write_tokens
from sttm.video import read_video


@dataclass(frozen=True)
class DecodedVideo:
    """A video decoded and resized, ready for the vision tower.

    Attributes:
        source: the file it came from.
        inputs: uint8 pixels as the model's own processor lays them out.
        content_digest: blake3 of the file, hex.
        details: what the artifact's manifest says of the decoding.
        decode_s: seconds it took.
    """

    source: Source
    inputs: VideoInputs
    content_digest: str
    details: dict[str, Any]
    decode_s: float


@dataclass(frozen=True)
class EncodedVideo:
    """A prefilled video as the bytes to store.

    Attributes:
        kv, tokens: the two files.
        facts: what was found while making them.
    """

    kv: EncodedKV
    tokens: bytes
    facts: Facts


class VideoReader:
    """Decodes and resizes videos for one model. Needs no weights and no GPU."""

    def __init__(self, config: IndexConfig) -> None:
        self._video = config.video
        self._family = Checkpoint.open(config.model).family()

    def read(self, ref: VideoRef) -> DecodedVideo:
        """Decode one video.

        Raises:
            VideoError: the file cannot be used.
        """
        started = time.perf_counter()
        frames = read_video(ref, self._video)
        try:
            inputs = self._family.preprocess(frames.pixels, frames.seconds)
        except ValueError as error:  # such as an aspect ratio the model's processor refuses
            raise VideoError("unusable_frames", f"{ref.uri}: {error}") from error
        source = Source(ref.uri, ref.video_id, ref.name, frames.size_bytes, ref.version)
        details = {
            "seconds": frames.seconds.tolist(),
            "duration_s": frames.duration_s,
            "decoder": frames.decoder,
            "warnings": list(frames.warnings),
        }
        return DecodedVideo(source, inputs, frames.content_digest, details, time.perf_counter() - started)


class Indexer:
    """Holds one model on one device; turns decoded videos into artifacts of one store.

    Args:
        config: what to make.
        recipe: of `config`, see `sttm.config.index_recipe`.
        store_url: where to put it.
        run_id: of the run, recorded in every artifact.
        device: where the model goes; None takes a GPU if there is one.
    """

    def __init__(
        self, config: IndexConfig, recipe: Recipe, store_url: str, run_id: str, device: str | None = None
    ) -> None:
        self._config, self._recipe, self._run_id = config, recipe, run_id
        self._store = Store.open(store_url)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint = Checkpoint.open(config.model)
        self._family = checkpoint.family()
        self._model = checkpoint.load_model(device)
        self._language_model = LanguageModel.of(self._model)
        self._probes = [self._family.question_ids(probe) for probe in config.fidelity.probes]
        self._provenance = {
            "model": checkpoint.name,
            "commit": checkpoint.commit,
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
            "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
            "chunk_tokens": config.prefill.chunk_tokens,
        }

    def stored(self, decoded: DecodedVideo) -> CatalogRow | None:
        """The row for a video whose content is in the store already, under whatever name."""
        name = identity(self._recipe, decoded.content_digest)
        return self._store.row_for(name, decoded.source) if self._store.has(name) else None

    def prefill(self, decoded: DecodedVideo) -> EncodedVideo:
        """Run the vision tower and the prefill, pack the result on the device it is on, and certify it.

        Raises:
            VideoError: the packed cache is less faithful than `fidelity.max_kl` allows.
        """
        started = time.perf_counter()
        prompt = self._family.prompt(self._model, decoded.inputs)
        _wait(prompt.embeds.device)
        encoded = time.perf_counter()
        result = prefill(self._language_model, prompt, self._config.merge, self._config.prefill)
        _wait(prompt.embeds.device)
        prefilled = time.perf_counter()
        timings = {"decode": decoded.decode_s, "encode": encoded - started, "prefill": prefilled - encoded}
        return self._pack(decoded, result, timings)

    def publish(self, decoded: DecodedVideo, encoded: EncodedVideo) -> CatalogRow:
        """Write the artifact and commit it; its catalog row, which the caller adds to the catalog."""
        return self._store.publish(
            self._recipe, decoded.content_digest, decoded.source, encoded.kv, encoded.tokens, encoded.facts
        )

    def _pack(self, decoded: DecodedVideo, result: Prefilled, timings: dict[str, float]) -> EncodedVideo:
        started = time.perf_counter()
        merged, cache = result.merged, result.cache
        stored_as = self._config.store
        kv = encode_kv(cache, stored_as.kv_scheme, self._provenance, stored_as.kv_scheme_below)
        tokens = write_tokens(
            cache.boxes, cache.patches, merged.index.cpu(), cache.frame_seconds, merged.features.cpu(), cache.grid
        )
        packed = time.perf_counter()
        certificate = self._certify(decoded, cache, kv) if self._probes else {}
        timings |= {"pack": packed - started, "certify": time.perf_counter() - packed}
        thresholds = {"spatial": merged.spatial_threshold, "temporal": merged.temporal_threshold}
        facts = Facts(
            tokens_before=decoded.inputs.tokens,
            tokens_after=len(merged.patches),
            thresholds={name: float(value) for name, value in thresholds.items() if value is not None},
            timings_s=timings,
            run_id=self._run_id,
            details={"sampling": decoded.details, "provenance": self._provenance, "certificate": certificate},
        )
        return EncodedVideo(kv, tokens, facts)

    def _certify(self, decoded: DecodedVideo, cache: KVCache, kv: EncodedKV) -> dict[str, float]:
        """Ask the probes of the live cache and of the file's bytes."""
        model, fidelity = self._language_model, self._config.fidelity
        stored = decode_kv(kv.data, decoded.source.uri, model.device)
        found = certify(model, ready(model, cache), ready(model, stored), self._probes, fidelity.tokens)
        if fidelity.max_kl is not None and not found.kl_mean <= fidelity.max_kl:
            scheme = self._config.store.kv_scheme
            raise VideoError(
                "unfaithful_cache",
                f"{decoded.source.uri}: the {scheme} cache differs from the live one by {found.kl_mean:.3g} nats a "
                f"token, more than fidelity.max_kl={fidelity.max_kl:g}; choose a finer store.kv_scheme, such as exact",
            )
        return asdict(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
