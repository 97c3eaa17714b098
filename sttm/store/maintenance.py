"""Looking after a store: verify every byte, count, remove videos, collect garbage.

Nothing in this file runs by itself. `collect_garbage` and `remove` must not run beside an index job of the same store.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise

from sttm.errors import StoreError
from sttm.store.artifact import (
    committed,
    load_manifest,
    manifest_key,
    read_file,
    require_size,
    utc_now,
)
from sttm.store.catalog.arrow_rows import rows_of
from sttm.store.catalog.counting import JUDGED_COLUMNS, counts
from sttm.store.catalog.history import Superseded, judge, split_history
from sttm.store.catalog.lookup import NamedRows
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import INDEX_AGAIN, Entry, MissingObjectError
from sttm.store.store import Store

_FILE_NAMES = {"kv.safetensors", "tokens.parquet"}
_COUNTED = ("kv_bytes", "tokens_bytes", "tokens_before", "tokens_after")


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
        yield Problem(identity, "committed, but without a row in the catalog; `python -m jobs.store repair` adds it")


def count(store: Store) -> StoreCounts:
    """Count videos, artifacts and bytes by the catalog; reads no artifact."""
    old = {s.row.identity: s.row for s in superseded(store)}.values()
    rows = [row for table in store.catalog.reader().counting(_COUNTED) for row in rows_of(table)]
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
    found = [s for s in store.catalog.reader().superseded() if s.by.status != "removed"]
    return [s for s in found if store.has(s.row.identity)]


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
    reader = store.catalog.reader()
    named = NamedRows(reader.candidates(video), store.storage.url, reader.suggestion).rows_of(video)
    video_id = named[0].video_id
    history = [row for row in reader.history_of([video_id]) if row.video_id == video_id]
    last = {row.recipe_digest: row for row in history}
    store.catalog.append([replace(row, status="removed", created_at=utc_now()) for row in last.values()])
    ours = {row.identity for row in history if row.identity}
    shared = store.catalog.reader().needed(ours)
    for identity in ours - shared:
        _delete_artifact(store, identity)
    count = sum(row.video_id == video_id for row in judge(history)[0])
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
    cutoff, storage = datetime.now(UTC) - min_age, store.storage
    commits = {entry.key[-69:-5]: entry for entry in storage.entries("commit")}
    replaced = [identity for identity in _replaced(store, cutoff) if identity in commits]
    loose: list[Entry] = []
    for identity, entries in groupby(storage.entries("kv"), key=lambda entry: _identity_of(entry.key)):
        files = list(entries)
        needed = _needed_files(store, identity, files) if identity in commits else set()
        is_replaced = identity in replaced
        loose += [e for e in files if is_replaced or (e.key not in needed and e.modified < cutoff)]
    old = [entry for entry in storage.entries("tmp") if entry.modified < cutoff]
    manifests = [commits[identity] for identity in replaced]
    return Garbage(tuple(replaced), (*manifests, *loose, *old, *_old_catalog(store, cutoff)))


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


def _needed_files(store: Store, identity: str, files: list[Entry]) -> set[str]:
    """Keys of the files that a committed artifact needs. The manifest is read only where several attempts left files,
    so that the reads do not grow with what is kept. If it is damaged, all files stay.
    """
    every = {entry.key for entry in files}
    if {key.rsplit("/", 1)[1] for key in every} <= _FILE_NAMES and len({key.rsplit("/", 1)[0] for key in every}) == 1:
        return every
    try:
        manifest = load_manifest(store.storage, identity)
    except MissingObjectError:
        return set()
    except StoreError:
        return every
    return {manifest.kv.key, manifest.tokens.key}


def _replaced(store: Store, cutoff: datetime) -> set[str]:
    """Identities of artifacts that no counting row names, and that were superseded or removed before `cutoff`."""
    reader = store.catalog.reader()
    found: set[str] = set()
    for table in reader.partitions(JUDGED_COLUMNS):
        found |= set(table.filter(~counts(table))["identity"].to_pylist())
    found -= {""} | reader.needed(found)
    history = reader.history_of(found)
    recent = {s.row.identity for s in judge(history)[1] if _is_recent(s.by, cutoff)}
    return found - recent - {row.identity for row in history if _is_recent(row, cutoff)}


def _is_recent(row: CatalogRow, cutoff: datetime) -> bool:
    # Both in the form of `created_at`, so that texts compare as times.
    return row.created_at >= cutoff.isoformat(timespec="microseconds")


def _old_catalog(store: Store, cutoff: datetime) -> list[Entry]:
    """Catalog versions that were followed by others before `cutoff`, and the objects with rows that only they name."""
    log = store.catalog.log
    versions = log.entries()
    old = [entry for entry, following in pairwise(versions) if following.modified < cutoff]
    named = {place for entry in versions[len(old) :] for place in log.read(entry.key).places}
    parts = [entry for entry in store.storage.entries("catalog/parts") if entry.modified < cutoff]
    return old + [entry for entry in parts if named.isdisjoint((entry.key, entry.key.rpartition("/")[0]))]
