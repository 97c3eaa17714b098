"""One version of the catalog, opened for reading: single videos through the index, all rows partition by partition."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sttm.store.catalog.arrow_rows import (
    STORED_SCHEMA,
    complete,
    first_sequence,
    in_order,
    last_usable,
    of_videos,
    rows_of,
    versions,
    with_hashes,
    with_sequence,
)
from sttm.store.catalog.counting import JUDGED_COLUMNS, counts, with_a_history
from sttm.store.catalog.generation import GenerationReader, names_in
from sttm.store.catalog.hashes import Hashes, distinct, first_bits, is_among, text_hashes
from sttm.store.catalog.history import Superseded, judge
from sttm.store.catalog.log import Snapshot
from sttm.store.catalog.lookup import NamedRows, near, spellings_asked
from sttm.store.catalog.part import Part, read_table, stored_schema
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import Storage

_NAMING = stored_schema(("video_id", "uri", "name", "identity"))
_SHARDS_PER_PARTITION_BITS = 4
_VIDEOS_AT_ONCE, _ENOUGH_VIDEOS = 1000, 16  # of the videos that share one name: read at a time, and enough for an error
_MOST_NAMES, _MOST_ROWS = 5000, 1_000_000  # how many names and rows are looked at for a suggestion


class Reader:
    """One version of the catalog. Nothing that it reads ever changes, and several threads may use it.

    Args:
        storage: objects of the store.
        snapshot: the version.
        earlier: a reader of an earlier version. The tables that it has read are used again, where this version has
            the same parts and generations.

    Attributes:
        snapshot: the version.
    """

    def __init__(self, storage: Storage, snapshot: Snapshot, earlier: "Reader | None" = None) -> None:
        self.snapshot, self._storage = snapshot, storage
        places = snapshot.places
        kept = dict(earlier._parts) if earlier else {}  # a copy, because other threads may be reading with `earlier`
        self._parts: dict[tuple[str, bool], pa.Table] = {key: kept[key] for key in kept if key[0] in places}
        self._opened: dict[str, GenerationReader] = dict(earlier._opened) if earlier else {}

    @cached_property
    def generations(self) -> list[GenerationReader]:
        """The generations, opened, oldest first."""
        known, needed = self._opened, self.snapshot.generations
        readers = [known.get(g.folder) or GenerationReader(self._storage, g) for g in needed]
        self._opened = {reader.generation.folder: reader for reader in readers}
        return readers

    @cached_property
    def bits(self) -> int:
        """How many bits of `video_hash` number a partition of `partitions`."""
        return max((0, *(g.row_bits - _SHARDS_PER_PARTITION_BITS for g in self.snapshot.generations)))

    @property
    def row_count(self) -> int:
        """Number of all rows, superseded ones included."""
        return sum(holder.rows for holder in self.snapshot.holders)

    def history(self) -> list[CatalogRow]:
        """All rows, superseded ones included, in the order in which they were added. Memory grows with the catalog."""
        return rows_of(in_order(pa.concat_tables(self.partitions())))

    def rows(self) -> list[CatalogRow]:
        """The row that counts of each video and recipe, in the order in which they were added; `judge` has the rules.
        Memory grows with the catalog.
        """
        return rows_of(in_order(pa.concat_tables(self.counting())))

    def counting(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows that count, in tables of bounded size, in no order.

        Args:
            columns: columns to read, besides those that tell which rows count; None reads all.
        """
        for table in self.partitions(None if columns is None else [*columns, *JUDGED_COLUMNS]):
            yield table.filter(counts(table))

    def partitions(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows in tables of bounded size, sorted by `video_hash` and `sequence`; each holds whole histories.

        Args:
            columns: columns to read, besides those that order rows; None reads all.
        """
        schema = stored_schema(columns)
        tail = pa.concat_tables([STORED_SCHEMA.empty_table(), *map(self._part, self.snapshot.tail)])
        tail = tail.select(schema.names)
        firsts = first_bits(tail["video_hash"].to_numpy(), self.bits)
        for partition in range(1 << self.bits):
            tables = [reader.rows_between(partition, self.bits, schema) for reader in self.generations]
            tables.append(tail.filter(firsts == partition))
            table = pa.concat_tables([complete(table, schema) for table in tables])
            is_sorted = len(tables) == 2 and not tables[-1].num_rows
            yield table if is_sorted else table.sort_by([("video_hash", "ascending"), ("sequence", "ascending")])

    def names(self) -> list["np.ndarray[Any, Any]"]:
        """The index of the names of all rows, uint64 [names, 2] for each place where rows lie."""
        return [*(reader.names() for reader in self.generations), *self._tail_names]

    def history_of(self, texts: Iterable[str]) -> list[CatalogRow]:
        """All rows of the videos that have one of these ids, URIs, names or identities, in the order of their addition.

        Names and identities that only superseded rows have count, too.
        """
        return self._history(self._videos(texts))

    def candidates(self, text: str) -> list[CatalogRow]:
        """The counting rows of the videos that a text may name; of a name that very many videos share, of some."""
        found: list[CatalogRow] = []
        if "/" not in text:  # it may be an id, which no index is needed for
            found = [row for row in judge(self._history(text_hashes([text])))[0] if row.video_id == text]
            if found:
                return found
        for spellings in (lambda: {text}, lambda: spellings_asked(text)):
            videos = self._videos(spellings())
            for start in range(0, len(videos), _VIDEOS_AT_ONCE):
                found += judge(self._history(videos[start : start + _VIDEOS_AT_ONCE]))[0]
                if len({row.video_id for row in found}) > _ENOUGH_VIDEOS:
                    break
            if NamedRows(found, "").named(text):
                break
        return found

    def named_any(self, texts: Iterable[str], place: str) -> NamedRows:
        """The counting rows of all videos that some texts may name.

        Args:
            texts: ids, URIs or file names of videos.
            place: name of the store for messages.
        """
        asked = set(texts)
        found = NamedRows(judge(self.history_of(asked))[0], place)
        # Most texts are exactly an id, URI or name, so other spellings are looked up for the rest only.
        spelt = {spelling for text in asked if not found.named(text) for spelling in spellings_asked(text)}
        return NamedRows(judge(self.history_of(asked | spelt))[0], place) if spelt else found

    def newest_usable(self) -> dict[str, CatalogRow]:
        """The usable row of each recipe that was added last, by digest of the recipe; the newest of all comes last."""
        ids: dict[str, str] = {}
        for holder in self.snapshot.holders:
            ids |= holder.last_usable
        if self.snapshot.is_old:
            ids = last_usable(self.history())
        usable = [row for row in judge(self._history(text_hashes(ids.values())))[0] if row.status == "ok"]
        if set(ids.items()) - {(row.recipe_digest, row.video_id) for row in usable}:  # some were removed: ask all rows
            usable = [row for row in self.rows() if row.status == "ok"]
        newest: dict[str, CatalogRow] = {}
        for row in usable:
            newest.pop(row.recipe_digest, None)
            newest[row.recipe_digest] = row
        return newest

    def superseded(self) -> list[Superseded]:
        """The rows whose artifacts were replaced and which no counting row needs, in no order."""
        found: list[Superseded] = []
        for table in self.partitions():
            found += judge(rows_of(table.filter(with_a_history(table))))[1]
        needed = self.needed({s.row.identity for s in found})
        return [s for s in found if s.row.identity not in needed]

    def needed(self, identities: Iterable[str]) -> set[str]:
        """Which of some identities are the identity of a counting row."""
        asked = set(identities)
        return asked & {row.identity for row in judge(self.history_of(asked))[0]}

    def added_since(self, version: int, columns: Sequence[str]) -> list[CatalogRow]:
        """The rows that were added after a version, in the order in which they were added.

        A generation is read as a whole if any of its rows is newer than the version.

        Args:
            version: a version of the catalog.
            columns: columns to read; other fields of the rows have their defaults.
        """
        schema = stored_schema(columns)
        tables = [self._part(part).select(schema.names) for part in self.snapshot.tail if part.version > version]
        for reader in self.generations:
            if reader.generation.last_version > version:
                shards = range(1 << reader.generation.row_bits)
                found = (reader.rows_between(shard, reader.generation.row_bits, schema) for shard in shards)
                tables += [table.filter(versions(table) > version) for table in found]
        return _rows_in_order(tables, schema)

    def suggestion(self, text: str) -> str:
        """What to say about a text that names no video: names that resemble it, or how many videos there are.

        In a large catalog a bounded number of rows is looked at, and only names that begin like the text.
        """
        names: dict[str, None] = {}
        seen = 0
        for table in self.counting(("name",)):
            seen += table.num_rows
            for values in (table["video_id"], table["name"]):
                if self.row_count > _MOST_NAMES:
                    values = values.filter(pc.starts_with(values, text[:2]))
                names |= dict.fromkeys(values.to_pylist())
            if len(names) >= _MOST_NAMES or seen >= _MOST_ROWS:
                break
        return near(text, list(names)[:_MOST_NAMES]) or f"it has {seen} videos"

    def _videos(self, texts: Iterable[str]) -> Hashes:
        """Hashes of the videos that have one of these ids, URIs, names or identities; of ids come first."""
        hashes = distinct(text_hashes(texts))
        found = [hashes[:0], *(reader.videos_named(hashes) for reader in self.generations)]
        found += [names[is_among(names[:, 0], hashes), 1] for names in self._tail_names]
        others = distinct(np.concatenate(found))
        return np.concatenate([hashes, others[~is_among(others, hashes)]])

    def _history(self, videos: Hashes) -> list[CatalogRow]:
        videos = distinct(videos)
        tables = [reader.rows_of(videos, STORED_SCHEMA) for reader in self.generations]
        for part in self.snapshot.tail:
            if is_among(self._part(part, _NAMING)["video_hash"].to_numpy(), videos).any():
                tables.append(of_videos(self._part(part), videos))
        return _rows_in_order(tables, STORED_SCHEMA)

    @cached_property
    def _tail_names(self) -> list["np.ndarray[Any, Any]"]:
        return [names_in(self._part(part, _NAMING)) for part in self.snapshot.tail]

    def _part(self, part: Part, schema: pa.Schema = STORED_SCHEMA) -> pa.Table:
        """The rows of a part; with `_NAMING`, only the columns that tell which videos they are of."""
        key = (part.key, schema is _NAMING)
        if key not in self._parts:
            if self.snapshot.is_old:
                self._parts |= self._old_parts(schema)
            else:
                table = with_hashes(read_table(self._storage, part.key, part.digest, schema))
                first = first_sequence(part.version, part.is_recovered)
                self._parts[key] = complete(with_sequence(table, first), schema)
        return self._parts[key]

    def _old_parts(self, schema: pa.Schema) -> dict[tuple[str, bool], pa.Table]:
        """The parts of an older program, which ordered all rows together by the clocks of their writers."""
        tail = self.snapshot.tail
        tables = [read_table(self._storage, part.key, part.digest, STORED_SCHEMA) for part in tail]
        tables = [complete(with_sequence(with_hashes(table), 0), STORED_SCHEMA) for table in tables]
        times = pa.concat_tables(tables)["created_at"].combine_chunks()
        ranks = np.empty(len(times), np.int64)
        ranks[pc.sort_indices(times).to_numpy()] = np.arange(len(times))
        ends = np.cumsum([0, *(table.num_rows for table in tables)])
        dated = (
            table.set_column(table.schema.get_field_index("sequence"), "sequence", pa.array(ranks[begin:end]))
            for table, (begin, end) in zip(tables, pairwise(ends), strict=True)
        )
        keys = ((part.key, schema is _NAMING) for part in tail)
        return {key: table.select(schema.names) for key, table in zip(keys, dated, strict=True)}


def _rows_in_order(tables: list[pa.Table], schema: pa.Schema) -> list[CatalogRow]:
    complete_tables = [schema.empty_table(), *(complete(table, schema) for table in tables)]
    return rows_of(in_order(pa.concat_tables(complete_tables)))
