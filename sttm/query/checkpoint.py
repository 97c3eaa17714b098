"""The checkpoint that made a store's artifacts: found by their manifests, and held against their recipes."""

import logging
from importlib.metadata import version

import torch

from sttm.errors import ModelError, StoreError
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.artifact import Manifest
from sttm.store.key import differences
from sttm.store.store import Store

_log = logging.getLogger("sttm.query")


def open_checkpoint(manifest: Manifest, path: str | None = None) -> Checkpoint:
    """The checkpoint that made an artifact, or the one at `path` if it is the same.

    Raises:
        ModelError: it differs from the recipe, so that its answers would be wrong, or nothing says which one it was.
    """
    provenance, recipe = manifest.facts.provenance, manifest.recipe["model"]
    if not (path or provenance.model):
        raise ModelError(f"the cache of {manifest.source.name} does not record which model made it; name the model")
    settings = ModelConfig(path=path or provenance.model, revision=provenance.commit, dtype=recipe["dtype"])
    checkpoint = Checkpoint.open(settings)
    require_same_model(manifest, checkpoint)
    for difference in provenance_differences(manifest):
        _log.warning("%s: %s; answers can differ in the last digits", manifest.source.name, difference)
    return checkpoint


def provenance_differences(manifest: Manifest) -> list[str]:
    """What does not change an artifact's meaning, but its last digits: libraries of another version than made it."""
    provenance = manifest.facts.provenance
    made = {"torch": provenance.torch or "?", "transformers": provenance.transformers or "?"}
    here = {"torch": str(torch.__version__), "transformers": version("transformers")}
    return [f"made with {name} {made[name]}, read with {mine}" for name, mine in here.items() if made[name] != mine]


def require_same_model(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise a ModelError if another checkpoint, or another arithmetic, made an artifact."""
    unlike = differences(manifest.recipe["model"], {**checkpoint.digests, "dtype": checkpoint.settings.dtype})
    if unlike:
        names = ", ".join(d.path for d in unlike)
        raise ModelError(
            f"checkpoint {checkpoint.name} is not the one that made this cache: its {names} differ; "
            f"give the right one with --model, or index {manifest.source.uri} again"
        )


def newest_checkpoint(store: Store, model: str | None) -> Checkpoint:
    """The model of the newest artifact, or `model` if it is the same.

    Raises:
        StoreError: the store holds nothing to ask about.
        ModelError: `model` did not make the newest artifact.
    """
    usable = [row for row in store.catalog.rows() if row.status == "ok"]
    if not usable:
        raise StoreError(f"{store.storage.url} holds no video that can be asked about; index some first")
    return open_checkpoint(store.manifest(usable[-1].identity), model)
