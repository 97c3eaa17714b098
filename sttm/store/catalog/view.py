"""A catalog for many look-ups: its newest version is asked for at most every few seconds; what is new alone is read."""

import threading
import time
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sttm.errors import StoreError
from sttm.store.catalog.arrow_rows import table_of
from sttm.store.catalog.catalog import Catalog
from sttm.store.catalog.hashes import distinct, is_among, text_hashes
from sttm.store.catalog.history import judge
from sttm.store.catalog.lookup import NamedRows
from sttm.store.catalog.reader import Reader
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import Storage

_PLACE = "the store"  # for messages, which strangers may see
_SEARCHED = ("video_id", "name", "uri")


class CatalogView:
    """A catalog as it was at most `max_age_s` ago, for reading from several threads.

    Args:
        storage: objects of the store.
        max_age_s: how old the rows may be, in seconds; infinity reads them once.
        recipe_digest: show rows of this recipe only; None shows all.
    """

    def __init__(self, storage: Storage, max_age_s: float = 5.0, recipe_digest: str | None = None) -> None:
        self._catalog, self._url = Catalog(storage), storage.url
        self._max_age_s, self._recipe_digest, self._lock = max_age_s, recipe_digest, threading.Lock()
        self._asked_at: float | None = None
        self._reader: Reader | None = None
        self._listed: tuple[int, pa.Table] | None = None  # made by the first search

    def rows(self) -> list[CatalogRow]:
        """The row that counts of each video and recipe, in the order in which they were added.

        Raises:
            StoreError: the catalog cannot be read, or it was there before and is gone, as after a lost mount.
        """
        return self._shown(self._newest().rows())

    def newest(self) -> CatalogRow | None:
        """The usable row that was added last; None if there is none."""
        shown = self._shown(self._newest().newest_usable().values())
        return shown[-1] if shown else None

    def find(self, text: str, recipe_digest: str | None = None) -> CatalogRow:
        """The newest usable row of the video with this id, URI or name.

        Args:
            text: id, URI or file name of the video.
            recipe_digest: look only at rows of this recipe; None looks at all.

        Raises:
            UnknownVideoError: the text names no usable video or several. The message does not say where the store is.
            StoreError: the catalog cannot be read.
        """
        return NamedRows(self._shown(self._newest().candidates(text)), _PLACE).find(text, recipe_digest)

    def search(self, text: str, offset: int, limit: int) -> tuple[list[CatalogRow], int]:
        """Search the usable videos for a text in id, name or URI, whatever the case of its letters.

        Args:
            text: the text; an empty one finds all videos.
            offset: videos before the page, the newest first.
            limit: the most videos of the page.

        Returns:
            The newest usable row of each video of the page, newest first, and how many videos the search found.

        Raises:
            StoreError: the catalog cannot be read.
        """
        reader = self._newest()
        with self._lock:
            listed = self._listing(reader)
        fitting = np.arange(listed.num_rows)
        if text:
            matches = [pc.match_substring(listed[column], text, ignore_case=True) for column in _SEARCHED]
            fitting = np.flatnonzero(np.logical_or.reduce([np.asarray(match) for match in matches]))
        page = fitting[::-1][offset : offset + limit]
        ids = listed["video_id"].take(pa.array(page)).to_pylist()
        usable = self._usable(judge(reader.history_of(ids))[0])
        newest = {row.video_id: row for row in usable}
        return [newest[video_id] for video_id in ids if video_id in newest], len(fitting)

    def _newest(self) -> Reader:
        with self._lock:
            if self._asked_at is None or time.monotonic() - self._asked_at > self._max_age_s:
                reader = self._catalog.reader()
                if self._reader is not None and reader.snapshot.version == 0 < self._reader.snapshot.version:
                    raise StoreError(f"the catalog of {self._url} is gone; is the store still mounted?")
                self._reader, self._asked_at = reader, time.monotonic()
            assert self._reader is not None
            return self._reader

    def _listing(self, reader: Reader) -> pa.Table:
        """`_SEARCHED` and `video_hash` of each usable video, the newest last."""
        version = reader.snapshot.version
        if self._listed is None or self._listed[0] > version:
            columns = [*_SEARCHED, "recipe_digest", "status"]
            tables = [self._last_usable(table) for table in reader.counting(columns)]
            table = pa.concat_tables(tables).sort_by("sequence").drop_columns("sequence")
        elif self._listed[0] == version:
            return self._listed[1]
        else:
            table = self._with_added(reader, *self._listed)
        self._listed = version, table
        return table

    def _with_added(self, reader: Reader, version: int, listed: pa.Table) -> pa.Table:
        """The listing of an earlier version, brought up to date with the videos that have new rows."""
        changed = dict.fromkeys(row.video_id for row in reader.added_since(version, ("video_id",)))
        newest = {row.video_id: row for row in self._usable(judge(reader.history_of(changed))[0])}
        added = table_of([newest[video_id] for video_id in changed if video_id in newest])
        hashes = distinct(text_hashes(changed))
        is_old = is_among(listed["video_hash"].to_numpy(), hashes)
        kept = listed.filter(~is_old) if is_old.any() else listed  # without a copy where nothing goes
        return pa.concat_tables([kept, added.select(listed.column_names)])

    def _shown(self, rows: Iterable[CatalogRow]) -> list[CatalogRow]:
        return [row for row in rows if self._recipe_digest in (None, row.recipe_digest)]

    def _usable(self, rows: Iterable[CatalogRow]) -> list[CatalogRow]:
        return [row for row in self._shown(rows) if row.status == "ok"]

    def _last_usable(self, table: pa.Table) -> pa.Table:
        """The listing's columns of the last usable row of each video; the table has whole histories, in order."""
        usable = pc.equal(table["status"], "ok")
        if self._recipe_digest is not None:
            usable = pc.and_(usable, pc.equal(table["recipe_digest"], self._recipe_digest))
        table = table.filter(usable).select([*_SEARCHED, "video_hash", "sequence"])
        videos = table["video_hash"].to_numpy()
        return table.filter(np.append(videos[1:] != videos[:-1], True)[: len(videos)])
