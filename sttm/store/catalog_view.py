"""A catalog for a service: read again only when it has changed, and not more often than every few seconds."""

import threading
import time

from sttm.store.catalog import Catalog, CatalogRow, Snapshot
from sttm.store.storage import Storage


class CatalogView(Catalog):
    """The rows as they were at most `max_age_s` ago. Thread-safe for reading."""

    def __init__(self, storage: Storage, max_age_s: float = 5.0) -> None:
        super().__init__(storage)
        self._max_age_s, self._lock = max_age_s, threading.Lock()
        self._read_at = float("-inf")
        self._seen: Snapshot | None = None
        self._rows: list[CatalogRow] = []

    def rows(self) -> list[CatalogRow]:
        """As for `Catalog.rows`; the list is shared, do not change it."""
        with self._lock:
            if time.monotonic() - self._read_at > self._max_age_s:
                snapshot = self.snapshot()
                if snapshot != self._seen:
                    self._rows = super().rows()
                    self._seen = snapshot
                self._read_at = time.monotonic()
            return self._rows

    def search(self, text: str, offset: int, limit: int) -> tuple[list[CatalogRow], int]:
        """One page of the usable videos with `text` in id, name or URI (any case), newest first; how many there are."""
        text = text.casefold()
        newest = {row.video_id: row for row in self.rows() if row.status == "ok"}
        found = [r for r in newest.values() if any(text in t.casefold() for t in (r.video_id, r.name, r.uri))]
        found.sort(key=lambda row: row.created_at, reverse=True)
        return found[offset : offset + limit], len(found)
