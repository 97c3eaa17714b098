"""One store: open it, publish artifacts into it, find a video, load its cache."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from sttm.errors import StoreError
from sttm.store.artifact import (
    Manifest,
    Source,
    commit_artifact,
    load_manifest,
    manifest_key,
    read_file,
    utc_now,
)
from sttm.store.catalog.catalog import Catalog
from sttm.store.catalog.row import CatalogRow
from sttm.store.facts import Facts
from sttm.store.key import FORMAT_VERSION, Recipe
from sttm.store.sealed import read_sealed, seal
from sttm.store.storage import MissingObjectError, Storage

if TYPE_CHECKING:  # torch takes seconds to import, and finding a video needs none of it
    import torch

    from sttm.kv_cache import KVCache
    from sttm.store.kv.file import EncodedKV, Survivors
    from sttm.store.kv.read_buffer import ReadBuffer
    from sttm.store.tokens import Tokens

_MARKER = "format.json"


class Store:
    """Artifacts and their catalog under one root URL. Make it with `Store.open`.

    Attributes:
        storage: the objects.
        catalog: the rows.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.catalog = Catalog(storage)

    @classmethod
    def open(cls, url: str | os.PathLike[str], create: bool = False) -> "Store":
        """Open the store at a URL.

        Args:
            url: local path, `memory://…` or `s3://…`.
            create: make an empty store if there is none.

        Raises:
            StoreError: there is no store, it cannot be reached, or it has another format version.
        """
        storage = Storage(os.fspath(url))
        if create and not storage.exists(_MARKER):
            storage.create(_MARKER, seal({"format": "sttm-store", "version": FORMAT_VERSION}))
        try:
            marker = read_sealed(storage, _MARKER, "delete it, the next index run writes it again")
        except MissingObjectError:
            raise StoreError(f"no store at {storage.url}; index some videos into it first") from None
        if marker != {"format": "sttm-store", "version": FORMAT_VERSION}:
            raise StoreError(
                f"store {storage.url} has format version {marker.get('version')}, this program reads {FORMAT_VERSION}; "
                "use a new store, or the program that wrote this one"
            )
        return cls(storage)

    def publish(
        self, recipe: Recipe, content_digest: str, source: Source, kv: "EncodedKV", tokens: bytes, facts: Facts
    ) -> CatalogRow:
        """Commit an artifact and return its catalog row, which the caller appends (in batches) to the catalog.

        If the same identity is committed already, that artifact is used and the row points to it.

        Args:
            recipe: everything besides the video that shaped the bytes; `recipe["store"]["kv_scheme"]` is `kv`'s.
            content_digest: of the video file.
            source: the video file.
            kv, tokens: the finished files.
            facts: found while making them.

        Raises:
            StoreError: a write failed; nothing was committed.
        """
        scheme, below = recipe["store"]["kv_scheme"], recipe["store"].get("kv_scheme_below")
        layout = kv.header.layout
        if (scheme, below or scheme) != (layout.scheme, layout.scheme_below):
            raise ValueError(
                f"recipe says {scheme}, the file is {layout.scheme}, below the merge {layout.scheme_below}"
            )
        manifest, ours = commit_artifact(self.storage, recipe, content_digest, source, kv, tokens, facts)
        return CatalogRow.of(manifest) if ours else self.row_for(manifest.identity, source)

    def has(self, identity: str) -> bool:
        """Whether this artifact is committed."""
        return self.storage.exists(manifest_key(identity))

    def manifest(self, identity: str) -> Manifest:
        """The verified manifest; errors as for `load_manifest`."""
        return load_manifest(self.storage, identity)

    def row_for(self, identity: str, source: Source) -> CatalogRow:
        """A new catalog row for a file whose artifact is committed already; errors as for `manifest`."""
        # Dated now: the file may have gone back to an earlier content, whose artifact is older than the last one.
        return CatalogRow.of(replace(self.manifest(identity), source=source, created_at=utc_now()))

    def find(self, video: str, recipe_digest: str | None = None) -> CatalogRow:
        """The newest artifact of a video by id, URI or name; errors as for `Catalog.find`."""
        return self.catalog.find(video, recipe_digest)

    def load_kv(
        self, identity: str, device: "torch.device | str" = "cpu", buffer: "ReadBuffer | None" = None
    ) -> "KVCache":
        """The KV cache of a committed artifact, every byte verified against its manifest; arguments as for `read_kv`.

        Raises:
            MissingObjectError: nothing is committed under this identity.
            ArtifactError: a file is damaged.
        """
        from sttm.store.kv.file import read_kv

        manifest = self.manifest(identity)
        kv = manifest.kv
        return read_kv(self.storage, kv.key, manifest.kv_header_digest, kv.size_bytes, device, buffer)

    def load_survivors(self, identity: str) -> "Survivors":
        """Where the reduced tokens of a committed artifact come from, read alone; errors as for `load_kv`."""
        from sttm.store.kv.file import read_survivors

        manifest = self.manifest(identity)
        return read_survivors(self.storage, manifest.kv.key, manifest.kv_header_digest, manifest.kv.size_bytes)

    def load_tokens(self, identity: str) -> "Tokens":
        """The reduced tokens of a committed artifact, every byte verified; errors as for `load_kv`."""
        from sttm.store.tokens import decode_tokens

        file = self.manifest(identity).tokens
        return decode_tokens(read_file(self.storage, file), f"{self.storage.url}/{file.key}")
