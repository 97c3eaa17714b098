"""The commit protocol: an artifact's files are written first, then one create-only manifest makes them exist.

    kv/<identity[:2]>/<identity>/<attempt>/kv.safetensors, tokens.parquet
    commit/<identity[:2]>/<identity>.json

A writer killed before the manifest leaves files that no reader knows. Two writers of one identity write to
different attempts; the manifest created first counts, for both.
"""

import re
import uuid
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
    """The video file an artifact was made of.

    Attributes:
        uri: where it is.
        video_id: its name in the corpus, unique there.
        name: file name for people.
        size_bytes: its size.
        version: ETag or modification time, as text.
    """

    uri: str
    video_id: str
    name: str
    size_bytes: int
    version: str


@dataclass(frozen=True)
class StoredFile:
    """One file of an artifact: key, size, blake3 of all its bytes."""

    key: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What a commit says. The digests in it vouch for every byte of the artifact.

    Attributes:
        identity: name of the artifact; follows from the next two.
        recipe: everything besides the video that shaped the bytes.
        content_digest: of the video file.
        source: the video file of the first writer.
        kv, tokens: the files.
        kv_header_digest: blake3 of the KV file's header, which holds the digests of its regions.
        facts: found while making it.
        created_at: UTC, ISO 8601.
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
    """Write an artifact and commit it; returns the manifest that counts and whether it is ours, not another writer's.

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
    storage.put(manifest.kv.key, kv.data)
    storage.put(manifest.tokens.key, tokens)
    if storage.create(manifest_key(name), record):
        return manifest, True
    for file in (manifest.kv, manifest.tokens):
        with suppress(StoreError):  # an orphan costs space only; `gc` removes it later
            storage.delete(file.key)
    return load_manifest(storage, name), False


def manifest_key(identity: str) -> str:
    """Key of an identity's manifest; refuses anything that is not an identity."""
    if not _IDENTITY.fullmatch(identity):
        raise StoreError(f"{identity[:80]!r} is not an artifact identity (64 hex digits)")
    return f"commit/{identity[:2]}/{identity}.json"


def load_manifest(storage: Storage, name: str) -> Manifest:
    """Read and verify the manifest of an identity.

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
    """Refuse a file of another size than was committed, before anybody takes memory for it.

    Raises:
        MissingObjectError: the file is gone.
        ArtifactError: it is shorter or longer.
    """
    if (size := storage.size(file.key)) != file.size_bytes:
        raise ArtifactError(
            f"{storage.url}/{file.key} has {size} bytes, committed were {file.size_bytes}; {INDEX_AGAIN}"
        )


def read_file(storage: Storage, file: StoredFile) -> bytes:
    """All bytes of an artifact's file, verified; errors as for `require_size`."""
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
