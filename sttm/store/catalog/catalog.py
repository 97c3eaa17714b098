"""The catalog: rows that say which video has which artifact, for finding and skipping; rebuilt from the manifests.

    catalog/parts/<random>.parquet          rows, never changed
    catalog/log/<version, 20 digits>.json   a snapshot, never changed: the parts that make up this version

The newest snapshot is the catalog, so a reader never sees half of a write. A writer creates the next version. If
another writer was first, it reads that writer's snapshot and tries again on top of it.
"""

import io
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sttm.errors import ArtifactError, StoreError
from sttm.store.artifact import committed, load_manifest
from sttm.store.catalog.history import split_history, without_repeats
from sttm.store.catalog.lookup import find_row
from sttm.store.catalog.row import NULLABLE, REQUIRED, SCHEMA, CatalogRow, storable
from sttm.store.sealed import digest_of, read_sealed, seal
from sttm.store.storage import Entry, Storage

COMPACT_AT = 32
_MAX_RACES = 1000
_PARALLEL_READS = 16  # a request to an object store takes tens of milliseconds
_LOG_KEY = re.compile(r"catalog/log/(\d{20})\.json")
_CURE = "delete the catalog folder; the next index run writes it again from the manifests"


@dataclass(frozen=True)
class Snapshot:
    """One version of the catalog.

    Attributes:
        version: number of the version; 0 is the empty catalog.
        parts: key, size, digest and number of rows of each part, oldest first.
    """

    version: int
    parts: tuple[Mapping[str, Any], ...]


class Catalog:
    """The rows of one store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def snapshot(self) -> Snapshot:
        """The newest version of the catalog.

        Raises:
            ArtifactError: the record of the version is damaged.
        """
        versions = self.versions()
        return self.read_snapshot(versions[-1].key) if versions else Snapshot(0, ())

    def versions(self) -> list[Entry]:
        """The objects of all versions that still exist, oldest first."""
        return [entry for entry in self.storage.entries("catalog/log") if _LOG_KEY.fullmatch(entry.key)]

    def read_snapshot(self, key: str) -> Snapshot:
        """The version that one object records.

        Raises:
            ArtifactError: the record is damaged.
        """
        parts = read_sealed(self.storage, key, _CURE).get("parts")
        if not (isinstance(parts, list) and all(map(_is_part, parts))):
            raise ArtifactError(f"{self.storage.url}/{key} is malformed: it lists no parts; {_CURE}")
        return Snapshot(int(key[-25:-5]), tuple(parts))

    def append(self, rows: Iterable[CatalogRow]) -> None:
        """Add rows. A new row supersedes older rows of its video and recipe; rows of other writers are never lost.

        Raises:
            StoreError: the storage refuses a write, or other writers were first too many times.
        """
        rows = list(rows)
        if not rows:
            return
        part = self._write_part(rows)
        for _ in range(_MAX_RACES):
            snapshot = self.snapshot()
            if self._publish(Snapshot(snapshot.version + 1, (*snapshot.parts, part))):
                if len(snapshot.parts) >= COMPACT_AT:
                    self.compact()
                return
        raise StoreError(f"catalog of {self.storage.url}: lost {_MAX_RACES} races; are its clocks or listings stale?")

    def compact(self) -> None:
        """Join all parts into one; does nothing if another writer changes the catalog at the same time."""
        snapshot = self.snapshot()
        if len(snapshot.parts) > 1:
            part = self._write_part(without_repeats(self.history(snapshot)))
            self._publish(Snapshot(snapshot.version + 1, (part,)))

    def history(self, snapshot: Snapshot | None = None) -> list[CatalogRow]:
        """All rows of a snapshot, superseded ones included, oldest first. Without a snapshot, the newest is read."""
        parts = (snapshot or self.snapshot()).parts
        with ThreadPoolExecutor(max_workers=_PARALLEL_READS) as pool:
            rows = [row for part in pool.map(self._read_part, parts) for row in part]
        return sorted(rows, key=lambda row: row.created_at)

    def rows(self) -> list[CatalogRow]:
        """The row that counts of each video and recipe, oldest first; `split_history` has the rules."""
        return split_history(self.history())[0]

    def find(self, text: str, recipe_digest: str | None = None) -> CatalogRow:
        """The newest artifact of the video with this id, URI or name.

        Args:
            text: video id, URI, or file name.
            recipe_digest: only artifacts of this recipe, if given.

        Raises:
            StoreError: no video or several fit, or indexing it failed; the message names what is there.
        """
        return find_row(text, self.rows(), self.storage.url, recipe_digest)

    def repair(self) -> list[CatalogRow]:
        """Add rows for committed artifacts that have none, and return these rows.

        An index job that is killed between committing an artifact and appending its row leaves such artifacts.
        """
        known = {row.identity for row in self.history()}
        lost = []
        for name in committed(self.storage):
            if name not in known:
                with suppress(StoreError):  # an unreadable manifest must not block the rest; `verify` reports it
                    lost.append(CatalogRow.of(load_manifest(self.storage, name)))
        self.append(lost)
        return lost

    def _publish(self, snapshot: Snapshot) -> bool:
        key = f"catalog/log/{snapshot.version:020d}.json"
        if not _LOG_KEY.fullmatch(key):
            raise ArtifactError(f"{self.storage.url}/{key}: no reader would look for a version that high; {_CURE}")
        return self.storage.create(key, seal({"parts": snapshot.parts, "nonce": uuid.uuid4().hex}))

    def _write_part(self, rows: list[CatalogRow]) -> dict[str, Any]:
        out = io.BytesIO()
        columns = {name: [storable(getattr(row, name)) for row in rows] for name in SCHEMA.names}
        pq.write_table(pa.table(columns, schema=SCHEMA), out, compression="zstd")
        data, key = out.getvalue(), f"catalog/parts/{uuid.uuid4().hex}.parquet"
        self.storage.put(key, data)
        return {"key": key, "size_bytes": len(data), "digest": digest_of(data), "rows": len(rows)}

    def _read_part(self, part: Mapping[str, Any]) -> list[CatalogRow]:
        data = self.storage.read(part["key"])
        try:
            if digest_of(data) != part["digest"]:
                raise ValueError("the bytes do not match their digest")
            # Use ParquetFile, because read_table would import pyarrow.dataset, which takes long.
            table = pq.ParquetFile(io.BytesIO(data), pre_buffer=False).read(use_threads=False)
            there = {*table.column_names, *REQUIRED}  # other versions may write further or fewer columns
            names = [name for name in SCHEMA.names if name in there]
            table = table.select(names).cast(pa.schema([SCHEMA.field(name) for name in names]))
            if missing := [name for name in names if table[name].null_count and name not in NULLABLE]:
                raise ValueError(f"a value of {missing} is missing")
            # Much faster than `to_pylist`; both give maps as lists of pairs.
            columns = {
                name: [dict(pairs) for pairs in values] if pa.types.is_map(table.schema.field(name).type) else values
                for name, values in table.to_pydict().items()
            }
            return [CatalogRow(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            raise ArtifactError(f"{self.storage.url}/{part['key']} is damaged: {error}; {_CURE}") from None


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("key"), str) and isinstance(part.get("digest"), str)
