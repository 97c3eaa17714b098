"""The checkpoint that made a store's artifacts: named by their manifests, and compared with their recipes."""

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
    """The checkpoint that made an artifact.

    Args:
        manifest: the artifact's manifest.
        path: folder or Hugging Face id of the checkpoint. None takes the one that the manifest names.

    Raises:
        ModelError: the checkpoint is not the one that the recipe describes, so its answers would be wrong, or the
            manifest does not name one.
    """
    provenance, recipe = manifest.facts.provenance, manifest.recipe["model"]
    if not (path or provenance.model):
        name = manifest.source.name
        raise ModelError(f"the cache of {name} does not record which model made it; name it with --set model.path=...")
    is_recorded = path in (None, provenance.model)
    commit = provenance.commit if is_recorded else None  # a commit exists in its own repository only
    try:
        settings = ModelConfig(path=path or provenance.model, revision=commit, dtype=recipe["dtype"])
        checkpoint = Checkpoint.open(settings)
    except ModelError as error:
        if is_recorded:
            raise
        hint = f"without model.path the model that made this cache is taken: {provenance.model}"
        raise ModelError(f"{error}; {hint}") from error
    require_same_model(manifest, checkpoint)
    for difference in provenance_differences(manifest):
        _log.warning("%s: %s; answers can differ in the last digits", manifest.source.name, difference)
    return checkpoint


def provenance_differences(manifest: Manifest) -> list[str]:
    """Libraries whose versions differ from those that made an artifact, which can change the last digits of answers."""
    provenance = manifest.facts.provenance
    made = {"torch": provenance.torch or "?", "transformers": provenance.transformers or "?"}
    here = {"torch": str(torch.__version__), "transformers": version("transformers")}
    return [f"made with {name} {made[name]}, read with {mine}" for name, mine in here.items() if made[name] != mine]


def require_same_model(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint and its arithmetic made an artifact.

    Raises:
        ModelError: another checkpoint, or another arithmetic, made it.
    """
    unlike = differences(manifest.recipe["model"], {**checkpoint.digests, "dtype": checkpoint.settings.dtype})
    if unlike:
        names = ", ".join(d.path for d in unlike)
        raise ModelError(
            f"checkpoint {checkpoint.name} is not the one that made this cache: its {names} differ; "
            f"leave model.path out to take {manifest.facts.provenance.model}, name the right one with --set "
            f"model.path=..., or index {manifest.source.uri} again"
        )


def newest_checkpoint(store: Store, model: str | None = None, recipe_digest: str | None = None) -> Checkpoint:
    """The checkpoint that made the newest usable artifact of a store.

    Args:
        store: the store.
        model: folder or Hugging Face id of the checkpoint. None takes the one that the artifact names.
        recipe_digest: look at artifacts of this recipe only; None looks at all.

    Raises:
        StoreError: the store holds no video that can be asked about.
        ModelError: the checkpoint did not make the newest artifact.
    """
    newest = store.catalog.reader().newest_usable()
    usable = [row for digest, row in newest.items() if recipe_digest in (None, digest)]
    if not usable:
        raise StoreError(f"{store.storage.url} holds no video that can be asked about; index some first")
    return open_checkpoint(store.manifest(usable[-1].identity), model)
