"""The commit protocol: an artifact's files are written first, then one create-only manifest makes them exist.

    kv/<identity[:2]>/<identity>/<attempt>/kv.safetensors, tokens.parquet
    commit/<identity[:2]>/<identity>.json

A writer that is killed before it creates the manifest leaves files that no reader looks at. Two writers of one identity
write to different attempts, and the manifest that was created first counts for both.
"""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sttm.errors import ArtifactError, StoreError
from sttm.store.facts import Facts, read_facts
from sttm.store.json_fields import build
from sttm.store.key import FORMAT_VERSION, Recipe, identity
from sttm.store.sealed import digest_of, read_sealed, seal
from sttm.store.storage import INDEX_AGAIN, Storage

if TYPE_CHECKING:  # torch takes seconds to import, and listing a store needs none of it
    from sttm.store.kv.file import EncodedKV

_IDENTITY = re.compile(r"[0-9a-f]{64}")
_CURE = f"{INDEX_AGAIN}; where no row names the video, delete this file first"


@dataclass(frozen=True)
class Source:
    """The video file that an artifact was made of.

    Attributes:
        uri: absolute URI of the file.
        video_id: name of the video, unique in the corpus.
        name: file name for people.
        size_bytes: size of the file.
        version: ETag or modification time of the file, as text.
    """

    uri: str
    video_id: str
    name: str
    size_bytes: int
    version: str


@dataclass(frozen=True)
class StoredFile:
    """One file of an artifact.

    Attributes:
        key: key of the object in the store.
        size_bytes: size of the file.
        digest: blake3 of all bytes of the file, hex.
    """

    key: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The record that commits an artifact. Every byte of the artifact can be checked against the digests in it.

    Attributes:
        identity: name of the artifact; it follows from `recipe` and `content_digest`.
        recipe: everything besides the video that shaped the bytes.
        content_digest: blake3 of the video file, hex.
        source: the video file of the first writer; another file with the same content has the same artifact.
        kv, tokens: the two files of the artifact.
        kv_header_digest: blake3 of the KV file's header, which holds the digests of the file's regions.
        facts: what was found out while the artifact was made.
        created_at: time of the commit; UTC, ISO 8601.
    """

    identity: str
    recipe: Recipe
    content_digest: str
    source: Source
    kv: StoredFile
    tokens: StoredFile
    kv_header_digest: str
    facts: Facts
    created_at: str


def commit_artifact(
    storage: Storage,
    recipe: Recipe,
    content_digest: str,
    source: Source,
    kv: "EncodedKV",
    tokens: bytes,
    facts: Facts,
) -> tuple[Manifest, bool]:
    """Write an artifact and commit it.

    Args:
        storage: objects of the store.
        recipe: everything besides the video that shaped the bytes.
        content_digest: blake3 of the video file, hex.
        source: the video file.
        kv: the finished KV file.
        tokens: the bytes of the token table.
        facts: what was found out while the artifact was made.

    Returns:
        The manifest that counts, and whether this call made it; another writer may have committed the identity first.

    Raises:
        StoreError: the storage refuses a write; nothing was committed.
    """
    name = identity(recipe, content_digest)
    folder = f"kv/{name[:2]}/{name}/{uuid.uuid4().hex[:12]}"
    manifest = Manifest(
        identity=name,
        recipe=recipe,
        content_digest=content_digest,
        source=source,
        kv=StoredFile(f"{folder}/kv.safetensors", len(kv.data), kv.digest),
        tokens=StoredFile(f"{folder}/tokens.parquet", len(tokens), digest_of(tokens)),
        kv_header_digest=kv.header_digest,
        facts=facts,
        created_at=utc_now(),
    )
    record = seal({"format_version": FORMAT_VERSION, **asdict(manifest), "facts": facts.record()})
    with ThreadPoolExecutor(1, "token-table") as thread:  # both files go to object storage at once
        written = thread.submit(storage.put, manifest.tokens.key, tokens)
        storage.put(manifest.kv.key, kv.data)
    written.result()
    if storage.create(manifest_key(name), record):
        return manifest, True
    for file in (manifest.kv, manifest.tokens):
        with suppress(StoreError):  # an orphan costs space only; `gc` removes it later
            storage.delete(file.key)
    return load_manifest(storage, name), False


def manifest_key(identity: str) -> str:
    """The key of an artifact's manifest.

    Raises:
        StoreError: the text is not an identity.
    """
    if not _IDENTITY.fullmatch(identity):
        raise StoreError(f"{identity[:80]!r} is not an artifact identity (64 hex digits)")
    return f"commit/{identity[:2]}/{identity}.json"


def load_manifest(storage: Storage, name: str) -> Manifest:
    """Read and verify the manifest of an artifact.

    Args:
        storage: objects of the store.
        name: identity of the artifact.

    Raises:
        MissingObjectError: nothing is committed under this identity.
        ArtifactError: the manifest is damaged, of another format version, or belongs to another identity.
    """
    key = manifest_key(name)
    where = f"{storage.url}/{key}"
    body = read_sealed(storage, key, _CURE)
    version = body.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{where} has format version {version}, this program reads {FORMAT_VERSION}; {_CURE}")
    try:
        manifest = build(Manifest, {**body, "facts": read_facts(body.get("facts"))})
        if manifest.identity != name or identity(manifest.recipe, manifest.content_digest) != name:
            raise ValueError("it belongs to another artifact")
        folder = f"kv/{name[:2]}/{name}/"
        if not (manifest.kv.key.startswith(folder) and manifest.tokens.key.startswith(folder)):
            raise ValueError("it names files outside its own folder")
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where} is malformed: {error}; {_CURE}") from None
    return manifest


def require_size(storage: Storage, file: StoredFile) -> None:
    """Check the size of an artifact's file, so that nobody allocates memory for a file that was replaced.

    Raises:
        MissingObjectError: the file does not exist.
        ArtifactError: the file is shorter or longer than it was at the commit.
    """
    if (size := storage.size(file.key)) != file.size_bytes:
        raise ArtifactError(
            f"{storage.url}/{file.key} has {size} bytes, committed were {file.size_bytes}; {INDEX_AGAIN}"
        )


def read_file(storage: Storage, file: StoredFile) -> bytes:
    """All bytes of an artifact's file, verified.

    Raises:
        MissingObjectError: the file does not exist.
        ArtifactError: the size or the digest of the file is not the one that was committed.
    """
    require_size(storage, file)
    data = storage.read(file.key)
    if digest_of(data) != file.digest:
        raise ArtifactError(f"{storage.url}/{file.key}: the bytes do not match their digest; {INDEX_AGAIN}")
    return data


def committed(storage: Storage) -> list[str]:
    """Identities of all committed artifacts, sorted."""
    names = (key.rsplit("/", 1)[1].removesuffix(".json") for key in storage.keys("commit"))
    return [name for name in names if _IDENTITY.fullmatch(name)]


def utc_now() -> str:
    """The time now in UTC, ISO 8601 with microseconds; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
