"""Derive an artifact of another KV scheme from an exact one, without the model and the video."""

from dataclasses import replace

from sttm.errors import StoreError
from sttm.store.artifact import Manifest, Source, read_file
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import make_recipe, source_key
from sttm.store.kv.file import encode_kv, read_header
from sttm.store.store import Store


def requantise(store: Store, row: CatalogRow, scheme: str) -> CatalogRow:
    """Derive an artifact of another scheme from an exact one; its bytes are those that indexing again would give.

    The fidelity certificate is left out, because it describes the exact artifact.

    Args:
        store: the store.
        row: catalog row of the exact artifact.
        scheme: name in `SCHEMES`.

    Returns:
        The catalog row of the new artifact, for the row's video. The caller appends it to the catalog.

    Raises:
        StoreError: the artifact is not exact, so that losses would add up, or it does not exist.
    """
    identity = row.identity
    manifest = store.manifest(identity)
    said = manifest.recipe["store"]
    if {said["kv_scheme"], said.get("kv_scheme_below") or "exact"} != {"exact"}:
        raise StoreError(
            f"artifact {identity[:12]} is stored as {said['kv_scheme']}; "
            "only an exact one can be converted, otherwise losses add up: index the video again"
        )
    notes = read_header(store.storage, manifest.kv.key, manifest.kv_header_digest)[0].notes
    sections = {key: value for key, value in manifest.recipe.items() if key != "format_version"}
    recipe = make_recipe(**{**sections, "store": {**said, "kv_scheme": scheme, "kv_scheme_below": None}})
    facts = replace(manifest.facts, certificate=None, converted_from=identity)
    tokens = read_file(store.storage, manifest.tokens)
    kv = encode_kv(store.load_kv(identity), scheme, notes)
    return store.publish(recipe, manifest.content_digest, _source_of(row, manifest), kv, tokens, facts)


def _source_of(row: CatalogRow, manifest: Manifest) -> Source:
    """The video of a row. It is the one in the manifest, or another with the same content."""
    source = replace(manifest.source, uri=row.uri, video_id=row.video_id, name=row.name)
    is_its_version = source_key(source.uri, source.size_bytes, source.version, manifest.recipe) == row.source_key
    # A catalog row holds no version, only a digest made with it.
    return source if is_its_version else replace(source, version="")
