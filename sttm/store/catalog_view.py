"""A catalog for many look-ups: read again only when it has changed, and not more often than every few seconds."""

import threading
import time

from sttm.errors import StoreError
from sttm.store.catalog import Catalog, CatalogRow, Snapshot
from sttm.store.storage import Storage


class CatalogView(Catalog):
    """The rows as they were at most `max_age_s` ago. Thread-safe for reading."""

    def __init__(self, storage: Storage, max_age_s: float = 5.0) -> None:
        super().__init__(storage)
        self._max_age_s, self._lock = max_age_s, threading.Lock()
        self._read_at: float | None = None
        self._seen: Snapshot | None = None
        self._rows: list[CatalogRow] = []
        self._named: dict[str, list[CatalogRow]] = {}

    def rows(self) -> list[CatalogRow]:
        """As for `Catalog.rows`; the list is shared, do not change it."""
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at > self._max_age_s:
                snapshot = self.snapshot()
                if snapshot != self._seen:
                    self._rows, self._seen = super().rows(), snapshot
                    self._named = _by_name(self._rows)
                self._read_at = time.monotonic()
            return self._rows

    def find(self, text: str, recipe_digest: str | None = None) -> CatalogRow:
        """As for `Catalog.find`, in constant time, and without a guess at what an unknown name may have meant."""
        self.rows()
        found = self._named.get(text)
        if not found:
            raise StoreError(f"no video {text[:200]!r} in {self.storage.url}")
        return _Fixed(self.storage, found).find(text, recipe_digest)

    def search(self, text: str, offset: int, limit: int) -> tuple[list[CatalogRow], int]:
        """One page of the usable videos with `text` in id, name or URI (any case), newest first; how many there are."""
        text = text.casefold()
        newest = {row.video_id: row for row in self.rows() if row.status == "ok"}
        found = [r for r in newest.values() if any(text in t.casefold() for t in (r.video_id, r.name, r.uri))]
        found.sort(key=lambda row: row.created_at, reverse=True)
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
