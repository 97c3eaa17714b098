"""The log of a catalog: each version is one immutable record that names the objects which hold its rows.

    catalog/log/<version, 20 digits>.json

The newest record is the catalog, so a reader never sees half of a write. A writer creates the next version; if another
writer was first, it reads that writer's record and tries again on top of it.
"""

import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

from sttm.errors import ArtifactError
from sttm.store.catalog.part import CURE, Part
from sttm.store.json_fields import build
from sttm.store.sealed import read_sealed, seal
from sttm.store.storage import Entry, MissingObjectError, Storage

# Must be longer than a reader works with one version, and than a writer waits between writing a part and naming it.
KEPT_FOR = timedelta(hours=1)
_EXPIRED_AT_ONCE = 64
_KEY = re.compile(r"catalog/log/(\d{20})\.json")
_PLACE = re.compile(r"catalog/parts/[0-9a-f]{32}(\.parquet)?")
_MOST_BITS = 32  # of a hash that number a shard; a catalog of ten billion rows has 22


@dataclass(frozen=True)
class Generation:
    """Rows that were sorted by video and split into shards by `video_hash`, with an index of names.

    Attributes:
        folder: folder of the objects.
        digest: blake3 of the directory, which has the digests of all shards.
        rows: number of rows.
        last_version: the newest version of the catalog that added any of the rows.
        last_usable: by recipe digest, the id of the video whose usable row of this recipe was added last.
        row_bits: the first bits of `video_hash` that number a shard of rows.
        name_bits: the first bits of a name's hash that number a shard of the index.
    """

    folder: str
    digest: str
    rows: int
    last_version: int
    last_usable: Mapping[str, str]
    row_bits: int
    name_bits: int

    def __post_init__(self) -> None:
        if not (0 <= self.row_bits <= _MOST_BITS and 0 <= self.name_bits <= _MOST_BITS):
            raise ValueError(f"{self.folder}: shards by {self.row_bits} and {self.name_bits} bits")


@dataclass(frozen=True)
class Snapshot:
    """One version of the catalog.

    Attributes:
        version: number of the version; 0 is the empty catalog.
        generations: the sorted rows, oldest first; each has at least as many rows as all that follow it.
        tail: the parts that were appended since.
        replaced: objects that the version before named and this one does not: keys, and folders of generations.
        is_old: whether a program that sorted rows by the clocks of their writers wrote this version.
    """

    version: int
    generations: tuple[Generation, ...] = ()
    tail: tuple[Part, ...] = ()
    replaced: tuple[str, ...] = ()
    is_old: bool = False

    @property
    def holders(self) -> tuple[Generation | Part, ...]:
        """Whatever holds rows of this version, oldest first."""
        return *self.generations, *self.tail

    @property
    def places(self) -> set[str]:
        """Keys and folders of all objects that hold rows of this version."""
        return {part.key for part in self.tail} | {generation.folder for generation in self.generations}


class Log:
    """The versions of one store's catalog.

    Args:
        storage: objects of the store.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def newest(self) -> Snapshot:
        """The newest version; version 0, which has no rows, if there is no record.

        Raises:
            ArtifactError: the record of the version is damaged.
        """
        entries = self.entries()
        return self.read(entries[-1].key) if entries else Snapshot(0)

    def entries(self) -> list[Entry]:
        """The records of all versions that still exist, oldest first."""
        return [entry for entry in self._storage.entries("catalog/log") if _KEY.fullmatch(entry.key)]

    def read(self, key: str) -> Snapshot:
        """The version that one record describes.

        Raises:
            ArtifactError: the record is damaged.
        """
        body = read_sealed(self._storage, key, CURE)
        version = int(key[-25:-5])
        body.pop("nonce", None)
        try:
            if "parts" in body:
                return Snapshot(version, tail=tuple(map(_old_part, body["parts"])), is_old=True)
            generations = tuple(build(Generation, item) for item in body["generations"])
            tail = tuple(build(Part, item) for item in body["tail"])
            return Snapshot(version, generations, tail, tuple(map(_place, body["replaced"])))
        except (KeyError, TypeError, ValueError) as error:
            where = f"{self._storage.url}/{key}"
            raise ArtifactError(f"{where} is malformed: {type(error).__name__}: {error}; {CURE}") from None

    def publish(self, snapshot: Snapshot) -> bool:
        """Make a snapshot the newest version.

        Returns:
            False if another writer has already made a version of this number; then nothing has changed.

        Raises:
            ArtifactError: the number is so high that its record would not be found.
            StoreError: the storage refuses the write.
        """
        key = f"catalog/log/{snapshot.version:020d}.json"
        if not _KEY.fullmatch(key):
            raise ArtifactError(f"{self._storage.url}/{key}: no reader would look for a version that high; {CURE}")
        fields = asdict(snapshot)
        body = {name: list(fields[name]) for name in ("generations", "tail", "replaced")}
        return self._storage.create(key, seal({**body, "nonce": uuid.uuid4().hex}))

    def expire(self) -> None:
        """Delete the records of versions that were followed by another at least `KEPT_FOR` before the newest version.

        Before a record is deleted, the objects in its `replaced` are: no later version names them. The age of a record
        is the difference of two times that the storage gave, so no clock of a writer counts. One call deletes at most
        64 records; if it is killed, the next call goes on.

        Raises:
            StoreError: the storage refuses to list, read or delete.
        """
        entries = self.entries()
        for old, following in pairwise(entries[: _EXPIRED_AT_ONCE + 1]):
            if entries[-1].modified - following.modified < KEPT_FOR:
                return
            with suppress(MissingObjectError, ArtifactError):  # another writer is expiring, too; `gc` removes the rest
                for place in self.read(old.key).replaced:
                    delete_place(self._storage, place)
            self._storage.delete(old.key)


def delete_place(storage: Storage, place: str) -> None:
    """Delete the object of a part, given by its key, or all objects of a generation, given by its folder."""
    for key in [place] if place.endswith(".parquet") else storage.keys(place):
        storage.delete(key)


def _place(text: str) -> str:
    """The key of a part or the folder of a generation; nothing else may be deleted in the name of a record.

    Raises:
        ValueError: the text is neither.
    """
    if not _PLACE.fullmatch(text):
        raise ValueError(f"{text!r} is neither a part nor a generation")
    return text


def _old_part(item: Mapping[str, Any]) -> Part:
    known = {name: item[name] for name in ("key", "size_bytes", "digest", "rows")}
    return build(Part, {**known, "version": 0, "is_recovered": False, "last_usable": {}})
