"""Looking after a store: verify every byte, count, remove videos, collect garbage.

Nothing in this file runs by itself. `collect_garbage` and `remove` must not run beside an index job of the same store.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sttm.errors import StoreError
from sttm.store.artifact import (
    Manifest,
    committed,
    load_manifest,
    manifest_key,
    read_file,
    require_size,
    utc_now,
)
from sttm.store.catalog.history import Superseded, split_history
from sttm.store.catalog.lookup import rows_of
from sttm.store.storage import INDEX_AGAIN, Entry, MissingObjectError
from sttm.store.store import Store


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it was committed.

    Attributes:
        identity: identity of the artifact; empty if the problem is in the catalog.
        message: what is wrong, where, and what to do about it.
        videos: ids of the videos that have this artifact, as far as the catalog can be read.
    """

    identity: str
    message: str
    videos: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoreCounts:
    """What a store holds.

    Attributes:
        videos: number of videos with at least one usable artifact.
        artifacts: number of usable artifacts.
        errors: number of videos whose indexing failed.
        kv_bytes, tokens_bytes: size of the usable artifacts' files.
        tokens_before, tokens_after: visual tokens entering and leaving the merge, summed over the usable artifacts.
        recipes: number of usable artifacts by recipe digest.
        superseded, superseded_bytes: number of artifacts that wait for `gc`, and the size of their files.
    """

    videos: int
    artifacts: int
    errors: int
    kv_bytes: int
    tokens_bytes: int
    tokens_before: int
    tokens_after: int
    recipes: Mapping[str, int]
    superseded: int
    superseded_bytes: int


@dataclass(frozen=True)
class Garbage:
    """What can be deleted.

    Attributes:
        artifacts: identities of superseded artifacts.
        objects: all objects to delete: first manifests, then files that nothing names.
    """

    artifacts: tuple[str, ...]
    objects: tuple[Entry, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that deleting frees."""
        return sum(entry.size_bytes for entry in self.objects)


@dataclass(frozen=True)
class Removed:
    """A video that was removed.

    Attributes:
        video_id: id of the video.
        rows: number of catalog rows that counted for the video.
        deleted: identities of the artifacts that were deleted.
        shared: identities of the artifacts that were kept, because other videos have the same content.
    """

    video_id: str
    rows: int
    deleted: tuple[str, ...]
    shared: tuple[str, ...]


def verify(store: Store) -> Iterator[Problem]:
    """Read every committed byte and every catalog row, and yield what is wrong; yields nothing if all is well."""
    identities = set(committed(store.storage))
    videos: dict[str, set[str]] = {}
    with suppress(StoreError):  # reported further down
        for row in store.catalog.history():
            videos.setdefault(row.identity, set()).add(row.video_id)
    damaged = set()
    for identity in sorted(identities):
        try:
            _verify_artifact(store, identity)
        except StoreError as error:
            damaged.add(identity)
            yield Problem(identity, str(error), tuple(sorted(videos.get(identity, ()))))
    try:
        history = store.catalog.history()
    except StoreError as error:
        yield Problem("", f"catalog: {error}")
        return
    for row in split_history(history)[0]:
        # An index job may have committed the artifact after the listing, so ask the store again.
        if row.status == "ok" and row.identity not in identities and not store.has(row.identity):
            message = f"video {row.video_id} has a row but no artifact; {INDEX_AGAIN}"
            yield Problem(row.identity, message, (row.video_id,))
    for identity in sorted(identities - damaged - {row.identity for row in history}):
        yield Problem(identity, "committed, but without a row in the catalog; the next index run repairs that")


def count(store: Store) -> StoreCounts:
    """Count videos, artifacts and bytes by the catalog; reads no artifact."""
    old = {s.row.identity: s.row for s in superseded(store)}.values()
    rows = store.catalog.rows()
    usable = [row for row in rows if row.status == "ok"]
    artifacts = {row.identity: row for row in usable}.values()
    return StoreCounts(
        videos=len({row.video_id for row in usable}),
        artifacts=len(artifacts),
        errors=sum(row.status == "error" for row in rows),
        kv_bytes=sum(row.kv_bytes for row in artifacts),
        tokens_bytes=sum(row.tokens_bytes for row in artifacts),
        tokens_before=sum(row.tokens_before for row in artifacts),
        tokens_after=sum(row.tokens_after for row in artifacts),
        recipes=dict(Counter(row.recipe_digest for row in artifacts)),
        superseded=len(old),
        superseded_bytes=sum(row.kv_bytes + row.tokens_bytes for row in old),
    )


def superseded(store: Store) -> list[Superseded]:
    """Artifacts replaced by newer artifacts of their videos, or by errors of changed files; `gc` deletes them."""
    found = [s for s in split_history(store.catalog.history())[1] if s.by.status != "removed"]
    there = set(committed(store.storage)) if found else set()  # a listing of many artifacts takes seconds
    return [s for s in found if s.row.identity in there]


def remove(store: Store, video: str) -> Removed:
    """Remove a video under every recipe and delete its artifacts, superseded ones and those of a killed run included.

    If it is killed half-way, it leaves files that `collect_garbage` finds.

    Args:
        store: the store.
        video: id, URI or file name of the video.

    Raises:
        StoreError: no video or several go by this name.
    """
    store.catalog.repair()  # otherwise the next index run would bring back artifacts that have no row yet
    history = store.catalog.history()
    rows = split_history(history)[0]
    video_id = rows_of(video, rows, store.storage.url)[0].video_id
    last = {row.recipe_digest: row for row in history if row.video_id == video_id}
    store.catalog.append([replace(row, status="removed", created_at=utc_now()) for row in last.values()])
    ours = {row.identity for row in history if row.video_id == video_id and row.identity}
    shared = ours & {row.identity for row in rows if row.video_id != video_id}
    for identity in ours - shared:
        _delete_artifact(store, identity)
    count = sum(row.video_id == video_id for row in rows)
    return Removed(video_id, count, tuple(sorted(ours - shared)), tuple(sorted(shared)))


def find_garbage(store: Store, min_age: timedelta = timedelta(days=1)) -> Garbage:
    """Find what no reader needs any more; changes nothing.

    Garbage is: artifacts superseded at least `min_age` ago; files of writers that never committed, temporary files, and
    old versions of the catalog, all untouched for `min_age`. Files of a damaged manifest stay, and `verify` reports
    them.

    Args:
        store: the store.
        min_age: must exceed the longest time between a writer's first file and its commit, and the longest time that
            a reader works with one snapshot of the catalog.
    """
    cutoff = datetime.now(UTC) - min_age
    cutoff_text = cutoff.isoformat(
        timespec="microseconds"
    )  # in the form of `created_at`, so that texts compare as times
    manifests, damaged = _manifests(store)
    replaced = [identity for identity in _replaced(store, cutoff_text) if identity in manifests]
    needed = {
        file.key for name, manifest in manifests.items() if name not in replaced
        for file in (manifest.kv, manifest.tokens)
    }  # fmt: skip
    storage = store.storage
    loose = [
        entry
        for entry in storage.entries("kv")
        if entry.key not in needed
        and _identity_of(entry.key) not in damaged
        and (entry.modified < cutoff or _identity_of(entry.key) in replaced)
    ]
    old = [entry for entry in storage.entries("tmp") if entry.modified < cutoff]
    commits = [entry for entry in storage.entries("commit") if entry.key in {manifest_key(name) for name in replaced}]
    return Garbage(tuple(replaced), (*commits, *loose, *old, *_old_catalog(store, cutoff)))


def collect_garbage(store: Store, garbage: Garbage) -> None:
    """Delete what `find_garbage` found. After being killed it can be called again."""
    for entry in garbage.objects:
        store.storage.delete(entry.key)


def _verify_artifact(store: Store, identity: str) -> None:
    from sttm.store.kv.file import verify_kv

    manifest, storage = store.manifest(identity), store.storage
    require_size(storage, manifest.kv)
    verify_kv(storage, manifest.kv.key, manifest.kv_header_digest)
    read_file(storage, manifest.tokens)


def _delete_artifact(store: Store, identity: str) -> None:
    """Delete the manifest first, because without it no reader looks for the files."""
    store.storage.delete(manifest_key(identity))
    for key in store.storage.keys(f"kv/{identity[:2]}/{identity}"):
        store.storage.delete(key)


def _identity_of(key: str) -> str:
    """The identity in the key of an artifact's file: `kv/ab/abcd…/<attempt>/<file>`."""
    return "".join(key.split("/")[2:3])


def _manifests(store: Store) -> tuple[dict[str, Manifest], set[str]]:
    """All readable manifests by identity, and the identities of the others."""
    manifests, damaged = {}, set()
    for identity in committed(store.storage):
        with suppress(MissingObjectError):
            try:
                manifests[identity] = load_manifest(store.storage, identity)
            except MissingObjectError:
                raise
            except StoreError:
                damaged.add(identity)
    return manifests, damaged


def _replaced(store: Store, cutoff: str) -> list[str]:
    """Identities of artifacts that no counting row names, and that were superseded or removed before `cutoff`."""
    history = store.catalog.history()
    counting, superseded = split_history(history)
    recent = {s.row.identity for s in superseded if s.by.created_at >= cutoff}
    recent |= {row.identity for row in history if row.created_at >= cutoff}
    return sorted({row.identity for row in history if row.identity} - {row.identity for row in counting} - recent)


def _old_catalog(store: Store, cutoff: datetime) -> list[Entry]:
    """Catalog versions that are older than `cutoff` and not the newest, and the parts that only they name."""
    versions = store.catalog.versions()
    old = [entry for entry in versions[:-1] if entry.modified < cutoff]
    kept = [entry for entry in versions if entry not in old]
    named = {part["key"] for entry in kept for part in store.catalog.read_snapshot(entry.key).parts}
    parts = store.storage.entries("catalog/parts")
    return old + [entry for entry in parts if entry.key not in named and entry.modified < cutoff]
