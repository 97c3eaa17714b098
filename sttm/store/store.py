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
        storage: objects of the store.
        catalog: rows of the store's videos.
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
            recipe: everything besides the video that shaped the bytes; its section `store` names the schemes of `kv`.
            content_digest: blake3 of the video file, hex.
            source: the video file.
            kv: the finished KV file.
            tokens: the bytes of the finished token table.
            facts: what was found out while the files were made.

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
        """Read and verify the manifest of an artifact.

        Raises:
            MissingObjectError: nothing is committed under this identity.
            ArtifactError: the manifest is damaged, of another format version, or belongs to another identity.
        """
        return load_manifest(self.storage, identity)

    def row_for(self, identity: str, source: Source) -> CatalogRow:
        """A new catalog row for a file whose content has a committed artifact.

        Raises:
            ArtifactError: the manifest of the artifact is damaged.
        """
        # Use the current time: after a file is reverted, its old artifact must win over the one made in between.
        return CatalogRow.of(replace(self.manifest(identity), source=source, created_at=utc_now()))

    def find(self, video: str, recipe_digest: str | None = None) -> CatalogRow:
        """The catalog row of the newest artifact of a video.

        Args:
            video: id, URI or file name of the video.
            recipe_digest: look only at artifacts of this recipe; None looks at all.

        Raises:
            StoreError: no video or several go by this name, or indexing it failed.
        """
        return self.catalog.find(video, recipe_digest)

    def load_kv(
        self, identity: str, device: "torch.device | str" = "cpu", buffer: "ReadBuffer | None" = None
    ) -> "KVCache":
        """The KV cache of a committed artifact, every byte verified.

        Args:
            identity: identity of the artifact.
            device: where keys and values go.
            buffer: memory for the packed bytes; a caller who loads many caches saves time by giving one.

        Raises:
            MissingObjectError: nothing is committed under this identity.
            ArtifactError: the manifest or the KV file is damaged.
        """
        from sttm.store.kv.file import read_kv

        manifest = self.manifest(identity)
        kv = manifest.kv
        return read_kv(self.storage, kv.key, manifest.kv_header_digest, kv.size_bytes, device, buffer)

    def load_survivors(self, identity: str) -> "Survivors":
        """Where the reduced tokens of a committed artifact come from; reads a small part of the KV file.

        Raises:
            MissingObjectError: nothing is committed under this identity.
            ArtifactError: the manifest or this part of the KV file is damaged.
        """
        from sttm.store.kv.file import read_survivors

        manifest = self.manifest(identity)
        return read_survivors(self.storage, manifest.kv.key, manifest.kv_header_digest, manifest.kv.size_bytes)

    def load_tokens(self, identity: str) -> "Tokens":
        """The reduced tokens of a committed artifact, every byte verified.

        Raises:
            MissingObjectError: nothing is committed under this identity.
            ArtifactError: the manifest or the token table is damaged.
        """
        from sttm.store.tokens import decode_tokens

        file = self.manifest(identity).tokens
        return decode_tokens(read_file(self.storage, file), f"{self.storage.url}/{file.key}")
