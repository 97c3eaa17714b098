"""The catalog: rows that say which video has which artifact, for finding and skipping; rebuilt from the manifests.

    catalog/log/<version>.json     the objects that make up this version (`log.py`)
    catalog/parts/<random>.parquet     rows as they were appended (`part.py`)
    catalog/parts/<random>/…           rows sorted by video, with an index (`generation.py`)

An append writes its rows as one part, and the next version names it. From time to time a writer merges the parts, with
the generations that are not much larger, into one generation: each generation has more than `_GROWTH` times the rows of
the next one, so that there are few, and each row is written again only a few times. Readers never write.
"""

import logging
import re
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from sttm.errors import StoreError
from sttm.store.artifact import load_manifest
from sttm.store.catalog.arrow_rows import last_usable, table_of
from sttm.store.catalog.counting import drop_repeats
from sttm.store.catalog.generation import write_generation
from sttm.store.catalog.log import Generation, Log, Snapshot, delete_place
from sttm.store.catalog.lookup import NamedRows
from sttm.store.catalog.part import Part, write_table
from sttm.store.catalog.reader import Reader
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import Storage

_log = logging.getLogger("sttm")
MERGE_AT_PARTS, MERGE_AT_ROWS = 16, 2048  # a tail this long is merged, because each look-up reads the whole tail
_GROWTH = 2  # a generation with more than so many times the rows that are to be merged stays as it is
_ROWS_PER_PART = 50_000
_MAX_RACES = 1000
_COMMIT_KEY = re.compile(r"commit/[0-9a-f]{2}/([0-9a-f]{64})\.json")
_REQUESTS_AT_ONCE = 16  # a request to an object store takes tens of milliseconds


class Catalog:
    """The rows of one store.

    Args:
        storage: objects of the store.

    Attributes:
        storage: objects of the store.
        log: the versions of the catalog.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage, self.log = storage, Log(storage)
        self._reader: Reader | None = None

    def reader(self) -> Reader:
        """The newest version, opened for reading.

        Parts and directories that this object has read before, for an earlier version, are not read again.

        Raises:
            StoreError: the record of the version is damaged or cannot be read.
        """
        snapshot, reader = self.log.newest(), self._reader
        if reader is None or reader.snapshot != snapshot:
            reader = self._reader = Reader(self.storage, snapshot, reader)
        return reader

    def history(self) -> list[CatalogRow]:
        """All rows, superseded ones included, in the order in which they were added. Memory grows with the catalog."""
        return self.reader().history()

    def rows(self) -> list[CatalogRow]:
        """The row that counts of each video and recipe, in the order in which they were added; `judge` has the rules.
        Memory grows with the catalog.
        """
        return self.reader().rows()

    def find(self, text: str, recipe_digest: str | None = None) -> CatalogRow:
        """The newest artifact of the video with this id, URI or name.

        Args:
            text: video id, URI, or file name.
            recipe_digest: only artifacts of this recipe, if given.

        Raises:
            StoreError: no video or several fit, or indexing it failed; the message names what is there.
        """
        reader = self.reader()
        return NamedRows(reader.candidates(text), self.storage.url, reader.suggestion).find(text, recipe_digest)

    def append(self, rows: Iterable[CatalogRow]) -> None:
        """Add rows. They come after all rows that were added before; rows of other writers are never lost.

        Raises:
            StoreError: the storage refuses a write, or other writers were first too many times.
        """
        self._append(list(rows), is_recovered=False)

    def compact(self, everything: bool = True) -> bool:
        """Merge the tail and generations into one generation. Rows of other writers are never lost.

        Args:
            everything: merge all generations. If False, the largest ones stay as they are: those with more than
                `_GROWTH` times the rows that would be merged into them.

        Returns:
            Whether a new version with the merged generation was made: False if there was nothing to merge, or if
            another writer merged the same rows first.

        Raises:
            StoreError: the storage refuses a write, or a row cannot be read.
        """
        snapshot = self.log.newest()
        kept, merged = (0, snapshot.generations) if everything else _worth_merging(snapshot)
        is_small = sum(part.rows for part in snapshot.tail) < MERGE_AT_ROWS
        if len(merged) + len(snapshot.tail) < 2 and is_small and not snapshot.is_old:
            return False
        generation = self._write(replace(snapshot, generations=merged))
        replaced = (*(g.folder for g in merged), *(part.key for part in snapshot.tail))
        for _ in range(_MAX_RACES):
            now = self.log.newest()
            rest = now.tail[len(snapshot.tail) :]
            if (now.generations, now.tail[: len(snapshot.tail)]) != (snapshot.generations, snapshot.tail):
                break
            generations = (*snapshot.generations[:kept], generation)
            if self.log.publish(Snapshot(now.version + 1, generations, rest, replaced)):
                self.log.expire()
                return True
        delete_place(self.storage, generation.folder)
        return False

    def repair(self) -> list[CatalogRow]:
        """Add rows for committed artifacts that have none, and return these rows.

        An index job that is killed between committing an artifact and appending its row leaves such artifacts. As
        nobody can say when the row would have come, the added row counts as older than all rows that are there. A
        manifest that cannot be read gets no row.

        Raises:
            StoreError: the storage cannot be listed or refuses a write, or a row cannot be read.
        """
        known = {name for table in self.reader().partitions(["identity"]) for name in table["identity"].to_pylist()}
        found = ((_COMMIT_KEY.fullmatch(entry.key), entry.modified) for entry in self.storage.entries("commit"))
        new = [(modified, match[1]) for match, modified in found if match and match[1] not in known]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            rows = list(pool.map(self._row_of, [identity for _, identity in new]))
        committed_at = [modified for modified, _ in new]
        lost = [(at, row.created_at, row) for at, row in zip(committed_at, rows, strict=True) if row]
        recovered = [row for _, _, row in sorted(lost, key=lambda item: item[:2])]
        self._append(recovered, is_recovered=True)
        return recovered

    def _append(self, rows: Sequence[CatalogRow], is_recovered: bool) -> None:
        for start in range(0, len(rows), _ROWS_PER_PART):
            part = self._write_part(rows[start : start + _ROWS_PER_PART], is_recovered)
            for _ in range(_MAX_RACES):
                snapshot = self.log.newest()
                if snapshot.is_old:
                    self.compact()
                    continue
                version = snapshot.version + 1
                part = replace(part, version=version)
                if is_recovered:  # the rows of this part count as older than all others
                    known = {recipe for holder in snapshot.holders for recipe in holder.last_usable}
                    last = {recipe: video for recipe, video in part.last_usable.items() if recipe not in known}
                    part = replace(part, last_usable=last)
                if self.log.publish(Snapshot(version, snapshot.generations, (*snapshot.tail, part))):
                    if _is_due(snapshot.tail, part):
                        self._merge_tail()
                    break
            else:
                url = self.storage.url
                raise StoreError(f"catalog of {url}: lost {_MAX_RACES} races; are its clocks or listings stale?")

    def _merge_tail(self) -> None:
        """Merge the tail. If that fails, the rows that were just added are there all the same."""
        try:
            self.compact(everything=False)
        except StoreError as error:
            _log.warning("the catalog could not be merged, which makes it slower: %s", error)

    def _row_of(self, identity: str) -> CatalogRow | None:
        with suppress(StoreError):  # an unreadable manifest must not block the rest; `verify` reports it
            return CatalogRow.of(load_manifest(self.storage, identity))
        return None

    def _write_part(self, rows: Sequence[CatalogRow], is_recovered: bool) -> Part:
        key = f"catalog/parts/{uuid.uuid4().hex}.parquet"
        size_bytes, digest = write_table(self.storage, key, table_of(rows))
        return Part(key, size_bytes, digest, len(rows), 0, is_recovered, last_usable(rows))

    def _write(self, snapshot: Snapshot) -> Generation:
        """Write all rows of a snapshot as one generation."""
        reader = Reader(self.storage, snapshot, self._reader)
        usable = last_usable(reader.history()) if snapshot.is_old else {}
        for holder in snapshot.holders:
            usable |= holder.last_usable
        versions = [generation.last_version for generation in snapshot.generations]
        versions += [part.version for part in snapshot.tail]
        tables = map(drop_repeats, reader.partitions())
        return write_generation(
            self.storage, reader.row_count, tables, reader.bits, reader.names(), max(versions, default=0), usable
        )


def _is_due(tail: Sequence[Part], part: Part) -> bool:
    """Whether the writer that added a part to a tail shall merge the tail.

    Each time the tail passes a multiple of `MERGE_AT_ROWS` or `MERGE_AT_PARTS`, one writer has to. If that writer is
    killed, the writer that passes the next multiple merges.
    """
    before = sum(other.rows for other in tail)
    grown = (before + part.rows) // MERGE_AT_ROWS > before // MERGE_AT_ROWS
    return grown or (len(tail) + 1) % MERGE_AT_PARTS == 0


def _worth_merging(snapshot: Snapshot) -> tuple[int, tuple[Generation, ...]]:
    """How many of the oldest generations stay as they are, and the others, which are to be merged with the tail."""
    rows, kept = sum(part.rows for part in snapshot.tail), len(snapshot.generations)
    while kept and snapshot.generations[kept - 1].rows <= _GROWTH * rows:
        kept -= 1
        rows += snapshot.generations[kept].rows
    return kept, snapshot.generations[kept:]
