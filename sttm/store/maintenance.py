"""Looking after a store: verify every byte, count, remove videos, collect garbage, derive smaller artifacts.

Nothing here runs by itself. `collect_garbage` and `remove` must not run beside an index job of the same store.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sttm.errors import ArtifactError, StoreError
from sttm.store.artifact import Manifest, committed, load_manifest, manifest_key, utc_now
from sttm.store.catalog import CatalogRow
from sttm.store.catalog_history import Superseded, split_history
from sttm.store.key import make_recipe
from sttm.store.sealed import digest_of, read_sealed
from sttm.store.storage import Entry, MissingObjectError
from sttm.store.store import Store


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it was committed.

    Attributes:
        identity: of the artifact; empty if the catalog itself is concerned.
        message: what, where, and what to do about it.
    """

    identity: str
    message: str


@dataclass(frozen=True)
class StoreCounts:
    """What a store holds.

    Attributes:
        videos: with at least one usable artifact.
        artifacts: that rows of the catalog name.
        errors: videos whose indexing failed.
        kv_bytes, tokens_bytes: of these artifacts.
        tokens_before, tokens_after: visual tokens entering and leaving the merge, summed.
        recipes: artifacts by recipe digest.
        superseded, superseded_bytes: further artifacts, which wait for `gc`, and the size of their files.
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
        artifacts: identities of superseded ones.
        objects: all objects to delete: manifests first, then files that nothing names.
    """

    artifacts: tuple[str, ...]
    objects: tuple[Entry, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that deleting frees."""
        return sum(entry.size_bytes for entry in self.objects)


def verify(store: Store) -> Iterator[Problem]:
    """Read every committed byte and every row; yields what is wrong, nothing if all is well."""
    identities = committed(store.storage)
    for identity in identities:
        try:
            _verify_artifact(store, identity)
        except StoreError as error:
            yield Problem(identity, str(error))
    try:
        usable = [row for row in store.catalog.rows() if row.status == "ok"]
        known = {row.identity for row in store.catalog.history()}
    except StoreError as error:
        yield Problem("", f"catalog: {error}")
        return
    for row in usable:
        if row.identity not in identities:
            yield Problem(row.identity, f"video {row.video_id} has a row but no artifact; index it again")
    for identity in sorted(set(identities) - known):
        yield Problem(identity, "committed, but without a row in the catalog; the next index run repairs that")


def count(store: Store) -> StoreCounts:
    """Count what the catalog names; reads no artifact."""
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
    """Artifacts that newer ones of their videos, or errors of changed files, took the place of; `gc` deletes them."""
    found = [s for s in split_history(store.catalog.history())[1] if s.by.status != "removed"]
    there = set(committed(store.storage)) if found else set()  # a listing takes seconds where there are many
    return [s for s in found if s.row.identity in there]


def remove(store: Store, video: str) -> list[CatalogRow]:
    """Remove a video under every recipe and delete its artifacts, superseded ones too; returns the rows that counted.

    Killed half-way, it leaves files that `collect_garbage` finds.

    Args:
        store: to remove from.
        video: id, URI or name.

    Raises:
        StoreError: no video or several fit.
    """
    video_id, history = store.catalog.identify(video), store.catalog.history()
    rows = split_history(history)[0]
    last = {row.recipe_digest: row for row in history if row.video_id == video_id}
    store.catalog.append([replace(row, status="removed", created_at=utc_now()) for row in last.values()])
    kept = {row.identity for row in rows if row.video_id != video_id}
    for identity in {row.identity for row in history if row.video_id == video_id and row.identity} - kept:
        _delete_artifact(store, identity)
    return [row for row in rows if row.video_id == video_id]


def find_garbage(store: Store, min_age: timedelta = timedelta(days=1)) -> Garbage:
    """What no reader needs any more; changes nothing.

    That is: artifacts superseded at least `min_age` ago; files of writers that never committed, temporary files, and
    old versions of the catalog, all untouched for `min_age`. Files of a damaged manifest stay, for `verify` to report.

    Args:
        store: to look through.
        min_age: must exceed the longest time between a writer's first file and its commit, and the longest time that
            a reader works with one snapshot of the catalog.
    """
    cutoff = datetime.now(UTC) - min_age
    manifests, damaged = _manifests(store)
    replaced = [identity for identity in _replaced(store, cutoff) if identity in manifests]
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
    """Delete what `find_garbage` found. Can be killed and repeated."""
    for entry in garbage.objects:
        store.storage.delete(entry.key)


def requantise(store: Store, identity: str, scheme: str) -> CatalogRow:
    """Derive an artifact of another scheme from an exact one; the bytes are those a fresh index would give.

    The fidelity certificate is not carried over: it spoke of the exact artifact. The caller appends the row.

    Raises:
        StoreError: the artifact is not exact (losses would add up), or there is none.
    """
    from sttm.store.kv import encode_kv, read_header

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
    details = {key: value for key, value in manifest.facts.details.items() if key != "certificate"}
    facts = replace(manifest.facts, details={**details, "converted_from": identity})
    tokens = store.storage.read(manifest.tokens.key)
    if digest_of(tokens) != manifest.tokens.digest:
        raise ArtifactError(f"{store.storage.url}/{manifest.tokens.key}: the bytes do not match their digest")
    kv = encode_kv(store.load_kv(identity), scheme, notes)
    return store.publish(recipe, manifest.content_digest, manifest.source, kv, tokens, facts)


def _verify_artifact(store: Store, identity: str) -> None:
    from sttm.store.kv import verify_kv

    manifest, storage = store.manifest(identity), store.storage
    for file in (manifest.kv, manifest.tokens):
        if (size := storage.size(file.key)) != file.size_bytes:
            raise ArtifactError(f"{storage.url}/{file.key} has {size} bytes, committed were {file.size_bytes}")
    verify_kv(storage, manifest.kv.key, manifest.kv_header_digest)
    if digest_of(storage.read(manifest.tokens.key)) != manifest.tokens.digest:
        raise ArtifactError(f"{storage.url}/{manifest.tokens.key}: the bytes do not match their digest")


def _delete_artifact(store: Store, identity: str) -> None:
    """The manifest first: without it no reader looks for the files."""
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
            except ArtifactError:
                damaged.add(identity)
    return manifests, damaged


def _replaced(store: Store, cutoff: datetime) -> list[str]:
    """Identities that rows name, but no row that counts, superseded or removed before `cutoff`."""
    history = store.catalog.history()
    counting, superseded = split_history(history)
    recent = {s.row.identity for s in superseded if _time(s.by) >= cutoff}
    recent |= {row.identity for row in history if _time(row) >= cutoff}
    return sorted({row.identity for row in history if row.identity} - {row.identity for row in counting} - recent)


def _old_catalog(store: Store, cutoff: datetime) -> list[Entry]:
    """Catalog versions before the newest, older than `cutoff`, and the parts that only they name."""
    records = store.storage.entries("catalog/log")
    old = [entry for entry in records[:-1] if entry.modified < cutoff]
    kept = [entry for entry in records if entry not in old]
    named = {part["key"] for entry in kept for part in read_sealed(store.storage, entry.key)["parts"]}
    parts = store.storage.entries("catalog/parts")
    return old + [entry for entry in parts if entry.key not in named and entry.modified < cutoff]


def _time(row: CatalogRow) -> datetime:
    return datetime.fromisoformat(row.created_at)
