"""A read-only catalog for many look-ups: it is read again only if it changed, and at most every few seconds."""

import threading
import time
from collections.abc import Callable

from sttm.errors import StoreError
from sttm.store.catalog.catalog import Catalog, Snapshot
from sttm.store.catalog.history import split_history
from sttm.store.catalog.lookup import find_row, spellings_asked, spellings_stored
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import Storage


class UnknownVideoError(StoreError):
    """The store can be read, but the name fits no usable video in it, or several."""


class CatalogView:
    """A catalog's rows as they were at most `max_age_s` ago, for reading from several threads.

    Args:
        storage: objects of the store.
        max_age_s: how old the rows may be, in seconds; infinity reads them once.
        recipe_digest: show rows of this recipe only; None shows all.
    """

    def __init__(self, storage: Storage, max_age_s: float = 5.0, recipe_digest: str | None = None) -> None:
        self._catalog = Catalog(storage)
        self._max_age_s, self._recipe_digest, self._lock = max_age_s, recipe_digest, threading.Lock()
        self._read_at: float | None = None
        self._seen: Snapshot | None = None
        self._rows: list[CatalogRow] = []
        self._named: dict[str, list[CatalogRow]] = {}
        self._respelled: dict[str, list[CatalogRow]] | None = None  # made when a text names nothing exactly
        self._newest: list[tuple[str, CatalogRow]] = []

    def rows(self) -> list[CatalogRow]:
        """The row that counts of each video and recipe, oldest first. The list is shared: do not change it.

        Raises:
            StoreError: the catalog cannot be read, or it was there before and is gone, as after a lost mount.
        """
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at > self._max_age_s:
                self._read()
                self._read_at = time.monotonic()
            return self._rows

    def find(self, text: str, recipe_digest: str | None = None) -> CatalogRow:
        """The newest usable row of the video with this id, URI or name, found without a look at the other rows.

        Args:
            text: id, URI or file name of the video.
            recipe_digest: look only at rows of this recipe; None looks at all.

        Raises:
            UnknownVideoError: the text names no usable video or several. The message does not say where the store is.
            StoreError: the catalog cannot be read.
        """
        self.rows()
        found = self._named.get(text)
        if not found:
            with self._lock:
                if self._respelled is None:
                    self._respelled = _by(self._rows, spellings_stored)
                respelled = self._respelled
            found = [row for spelling in spellings_asked(text) for row in respelled.get(spelling, ())]
        if not found:
            raise UnknownVideoError(f"no video {text[:200]!r} in the store")
        try:
            return find_row(text, found, "the store", recipe_digest)
        except StoreError as error:
            raise UnknownVideoError(str(error)) from None

    def search(self, text: str, offset: int, limit: int) -> tuple[list[CatalogRow], int]:
        """One page of the usable videos with `text` in id, name or URI (any case), newest first; how many there are."""
        self.rows()
        text = text.casefold()
        found = [row for folded, row in self._newest if text in folded]
        return found[offset : offset + limit], len(found)

    def _read(self) -> None:
        snapshot = self._catalog.snapshot()
        if self._seen is not None and snapshot.version == 0 < self._seen.version:
            raise StoreError(f"the catalog of {self._catalog.storage.url} is gone; is the store still mounted?")
        if snapshot != self._seen:
            rows, self._seen = split_history(self._catalog.history(snapshot))[0], snapshot
            self._rows = [row for row in rows if self._recipe_digest in (None, row.recipe_digest)]
            self._named, self._newest = _by(self._rows, _names), _newest_first(self._rows)
            self._respelled = None


def _names(row: CatalogRow) -> set[str]:
    return {row.video_id, row.uri, row.name}


def _by(rows: list[CatalogRow], texts_of: Callable[[CatalogRow], set[str]]) -> dict[str, list[CatalogRow]]:
    """All rows by each text that can name them."""
    named: dict[str, list[CatalogRow]] = {}
    for row in rows:
        for text in texts_of(row):
            named.setdefault(text, []).append(row)
    return named


def _newest_first(rows: list[CatalogRow]) -> list[tuple[str, CatalogRow]]:
    """The newest usable row of each video, newest first, each with the text that a search looks in."""
    newest = {row.video_id: row for row in rows if row.status == "ok"}.values()
    ordered = sorted(newest, key=lambda row: row.created_at, reverse=True)
    return [("\0".join((row.video_id, row.name, row.uri)).casefold(), row) for row in ordered]
