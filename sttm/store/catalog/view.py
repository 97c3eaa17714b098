"""A catalog for many look-ups: read again only when it has changed, and not more often than every few seconds."""

import threading
import time

from sttm.errors import StoreError
from sttm.store.catalog.catalog import Catalog, Snapshot
from sttm.store.catalog.history import split_history
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import Storage


class UnknownVideoError(StoreError):
    """The store can be read, and no one usable video in it goes by this name."""


class CatalogView(Catalog):
    """The rows as they were at most `max_age_s` ago. Thread-safe for reading.

    A catalog that was there and is gone, as after a lost mount, is a `StoreError`, and not an empty store.
    """

    def __init__(self, storage: Storage, max_age_s: float = 5.0, recipe_digest: str | None = None) -> None:
        super().__init__(storage)
        self._max_age_s, self._recipe_digest, self._lock = max_age_s, recipe_digest, threading.Lock()
        self._read_at: float | None = None
        self._seen: Snapshot | None = None
        self._rows: list[CatalogRow] = []
        self._named: dict[str, list[CatalogRow]] = {}
        self._newest: list[tuple[str, CatalogRow]] = []

    def rows(self) -> list[CatalogRow]:
        """As for `Catalog.rows`; the list is shared, do not change it."""
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at > self._max_age_s:
                snapshot = self.snapshot()
                if self._seen is not None and snapshot.version == 0 < self._seen.version:
                    raise StoreError(f"the catalog of {self.storage.url} is gone; is the store still mounted?")
                if snapshot != self._seen:
                    rows, self._seen = split_history(self.history(snapshot))[0], snapshot
                    self._rows = [row for row in rows if self._recipe_digest in (None, row.recipe_digest)]
                    self._named, self._newest = _by_name(self._rows), _newest_first(self._rows)
                self._read_at = time.monotonic()
            return self._rows

    def find(self, text: str, recipe_digest: str | None = None) -> CatalogRow:
        """As for `Catalog.find`, in constant time, and without a guess at what an unknown name may have meant.

        Raises:
            UnknownVideoError: where `Catalog.find` raises; the message does not tell where the store is.
        """
        self.rows()
        found = self._named.get(text)
        if not found:
            raise UnknownVideoError(f"no video {text[:200]!r} in the store")
        try:
            return _Fixed(self.storage, found).find(text, recipe_digest)
        except StoreError as error:
            raise UnknownVideoError(str(error)) from None

    def search(self, text: str, offset: int, limit: int) -> tuple[list[CatalogRow], int]:
        """One page of the usable videos with `text` in id, name or URI (any case), newest first; how many there are."""
        self.rows()
        text = text.casefold()
        found = [row for folded, row in self._newest if text in folded]
        return found[offset : offset + limit], len(found)


class _Fixed(Catalog):
    """A catalog of a few given rows."""

    def __init__(self, storage: Storage, rows: list[CatalogRow]) -> None:
        super().__init__(storage)
        self._rows = rows

    def rows(self) -> list[CatalogRow]:
        return self._rows


def _by_name(rows: list[CatalogRow]) -> dict[str, list[CatalogRow]]:
    """All rows that a text may mean: by id, URI and name."""
    named: dict[str, list[CatalogRow]] = {}
    for row in rows:
        for name in {row.video_id, row.uri, row.name}:
            named.setdefault(name, []).append(row)
    return named


def _newest_first(rows: list[CatalogRow]) -> list[tuple[str, CatalogRow]]:
    """The newest usable row of each video, newest first, with the text that it is searched by."""
    newest = {row.video_id: row for row in rows if row.status == "ok"}.values()
    ordered = sorted(newest, key=lambda row: row.created_at, reverse=True)
    return [("\0".join((row.video_id, row.name, row.uri)).casefold(), row) for row in ordered]
