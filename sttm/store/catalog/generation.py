"""A generation of the catalog: rows sorted by video in shards, and an index that finds a video by its names.

    catalog/parts/<random>/directory.parquet    digest of each shard
    catalog/parts/<random>/rows-<number>.parquet    rows, by the first bits of `video_hash`
    catalog/parts/<random>/names-<number>.parquet   hash of a URI, name or identity -> `video_hash`, by its first bits

Nothing in it ever changes. A look-up reads the directory and one shard of either kind.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from sttm.errors import ArtifactError
from sttm.store.catalog.arrow_rows import of_videos
from sttm.store.catalog.hashes import Hashes, distinct, first_bits, is_among, text_hashes
from sttm.store.catalog.log import Generation
from sttm.store.catalog.lookup import stored_spellings
from sttm.store.catalog.part import CURE, read_table, write_table
from sttm.store.storage import Storage

_ROWS_PER_SHARD, _NAMES_PER_SHARD = 4096, 16384
_REQUESTS_AT_ONCE = 16  # a request to an object store takes tens of milliseconds
_DIRECTORY = pa.schema({"kind": pa.string(), "shard": pa.int64(), "digest": pa.string()})
_NAMES = pa.schema({"name_hash": pa.uint64(), "video_hash": pa.uint64()})
_NAMING_COLUMNS = ("uri", "name", "identity")


class GenerationReader:
    """One generation, opened for reading.

    Args:
        storage: objects of the store.
        generation: what the log says about it.

    Raises:
        ArtifactError: the directory is damaged.
    """

    def __init__(self, storage: Storage, generation: Generation) -> None:
        self.generation = generation
        self._storage, self._folder = storage, generation.folder
        self._last: tuple[int, pa.Schema, pa.Table] | None = None
        table = read_table(storage, f"{self._folder}/directory.parquet", generation.digest, _DIRECTORY)
        places = zip(table["kind"].to_pylist(), table["shard"].to_pylist(), strict=True)
        self._digests = dict(zip(places, table["digest"].to_pylist(), strict=True))

    def rows_of(self, videos: Hashes, schema: pa.Schema) -> pa.Table:
        """All rows of some videos.

        Args:
            videos: hashes of the videos, sorted.
            schema: columns to read; `video_hash` is one of them.
        """
        shards = distinct(first_bits(videos, self.generation.row_bits))
        tables = self._read_all((shard, schema, videos) for shard in shards.tolist())
        found = [of_videos(table, videos) for table in tables]
        return pa.concat_tables(found) if found else schema.empty_table()

    def videos_named(self, names: Hashes) -> Hashes:
        """Hashes of the videos that have one of some names, sorted.

        Args:
            names: hashes of URIs, file names or identities, sorted.
        """
        found = [np.zeros(0, np.uint64)]
        for shard in distinct(first_bits(names, self.generation.name_bits)).tolist():
            table = self._shard("names", shard, _NAMES)
            found.append(table["video_hash"].to_numpy()[is_among(table["name_hash"].to_numpy(), names)])
        return distinct(np.concatenate(found))

    def rows_between(self, partition: int, bits: int, schema: pa.Schema) -> pa.Table:
        """All rows whose `video_hash` begins with the given bits, sorted by `video_hash`, then by `sequence`.

        Args:
            partition: the first bits, as a number.
            bits: how many bits these are.
            schema: columns to read; `video_hash` is one of them.
        """
        more = self.generation.row_bits - bits
        if more >= 0:
            shards = range(partition << more, (partition + 1) << more)
            return pa.concat_tables(self._read_all((shard, schema, None) for shard in shards))
        shard = partition >> -more
        last = self._last  # read once, because other threads replace it
        if last is None or last[:2] != (shard, schema):
            last = self._last = (shard, schema, self._shard("rows", shard, schema))
        table = last[2]
        ends = np.searchsorted(first_bits(table["video_hash"].to_numpy(), bits), (partition, partition + 1))
        return table.slice(ends[0], ends[1] - ends[0])

    def names(self) -> "np.ndarray[Any, Any]":
        """The whole index: uint64 [names, 2], hashes of a name and of a video."""
        tables = [self._shard("names", shard, _NAMES) for shard in range(1 << self.generation.name_bits)]
        return np.concatenate([np.stack([column.to_numpy() for column in table.columns], 1) for table in tables])

    def _read_all(self, reads: Iterable[tuple[int, pa.Schema, Hashes | None]]) -> list[pa.Table]:
        asked = list(reads)
        if len(asked) == 1:
            return [self._shard("rows", *asked[0])]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            return list(pool.map(lambda read: self._shard("rows", *read), asked))

    def _shard(self, kind: str, shard: int, schema: pa.Schema, videos: Hashes | None = None) -> pa.Table:
        digest = self._digests.get((kind, shard))
        if digest is None:
            raise ArtifactError(f"{self._storage.url}/{self._folder}/directory.parquet lacks {kind} {shard}; {CURE}")
        return read_table(self._storage, _key(self._folder, kind, shard), digest, schema, videos)


def write_generation(
    storage: Storage,
    rows: int,
    partitions: Iterable[pa.Table],
    bits: int,
    names: Sequence["np.ndarray[Any, Any]"],
    last_version: int,
    last_usable: Mapping[str, str],
) -> Generation:
    """Write a generation; no reader knows it until it is in the log.

    Args:
        storage: objects of the store.
        rows: about how many rows there are.
        partitions: the rows in tables by the first `bits` bits of `video_hash`, each sorted by `video_hash` and
            `sequence`, in the order of these bits.
        bits: how many bits number a partition.
        names: indexes of the names of these rows, uint64 [names, 2] each.
        last_version: the newest version of the catalog that added any of the rows.
        last_usable: by recipe digest, the id of the video whose usable row of this recipe was added last.

    Returns:
        What the log must say about the generation.

    Raises:
        StoreError: the storage refuses a write. The objects that were written before stay, until `gc` removes them.
    """
    row_bits = max(bits, _bits_for(rows, _ROWS_PER_SHARD))
    index = np.unique(np.concatenate([np.zeros((0, 2), np.uint64), *names]), axis=0)
    name_bits = _bits_for(len(index), _NAMES_PER_SHARD)
    folder = f"catalog/parts/{uuid.uuid4().hex}"
    written = 0

    def tables() -> Iterator[tuple[str, int, pa.Table]]:
        nonlocal written
        for partition, table in enumerate(partitions):
            written += table.num_rows
            first = partition << (row_bits - bits)
            for shard, piece in enumerate(_split(table, "video_hash", row_bits, first, 1 << (row_bits - bits)), first):
                yield "rows", shard, piece
        whole = pa.table(list(index.T), schema=_NAMES)
        for shard, piece in enumerate(_split(whole, "name_hash", name_bits, 0, 1 << name_bits)):
            yield "names", shard, piece

    found = [
        (kind, shard, write_table(storage, _key(folder, kind, shard), piece)[1]) for kind, shard, piece in tables()
    ]
    directory = pa.table([pa.array(column) for column in zip(*found, strict=True)], schema=_DIRECTORY)
    digest = write_table(storage, f"{folder}/directory.parquet", directory)[1]
    return Generation(folder, digest, written, last_version, last_usable, row_bits, name_bits)


def names_in(table: pa.Table) -> "np.ndarray[Any, Any]":
    """The index of the names in a table of rows, uint64 [names, 2]: hashes of a name and of its video."""
    videos = table["video_hash"].to_numpy()
    pairs = [(text_hashes(table[column].to_pylist()), videos) for column in _NAMING_COLUMNS]
    for position, (uri, name) in enumerate(zip(table["uri"].to_pylist(), table["name"].to_pylist(), strict=True)):
        if other := stored_spellings(uri, name) - {uri, name}:
            pairs.append((text_hashes(other), np.repeat(videos[position], len(other))))
    return np.concatenate([np.stack(pair, 1) for pair in pairs])


def _split(table: pa.Table, column: str, bits: int, first: int, count: int) -> Iterator[pa.Table]:
    """Cut a sorted table into the shards [first, first + count) of a column's first bits; empty ones too."""
    ends = np.searchsorted(first_bits(table[column].to_numpy(), bits), np.arange(first, first + count + 1))
    for begin, end in pairwise(ends):
        yield table.slice(begin, end - begin)


def _bits_for(count: int, most: int) -> int:
    """The fewest bits that number shards of about `most` entries or fewer."""
    return max(0, (max(1, count) - 1) // most).bit_length()


def _key(folder: str, kind: str, shard: int) -> str:
    return f"{folder}/{kind}-{shard:06x}.parquet"
