"""Copies of remote KV files on a local disk. Their digests are checked at every load."""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sttm.errors import ArtifactError, StoreError
from sttm.store.artifact import Manifest, require_size
from sttm.store.sealed import digest_of
from sttm.store.storage import INDEX_AGAIN, MissingObjectError, Storage

if TYPE_CHECKING:
    import torch

    from sttm.kv_cache import KVCache
    from sttm.store.kv.read_buffer import ReadBuffer

_log = logging.getLogger(__name__)
_ABANDONED = timedelta(hours=1)  # a half-written copy of this age has no writer any more
_WAITING_BYTES = 1 << 30  # copies in memory that are still to be written to a slow disk


class DiskCache:
    """KV files of one remote store under a local folder. Beyond a size, the least recently used are removed.

    Several processes may share the folder and keep its limit together, because each reads from the folder itself which
    copies there are and when they were last used. Thread-safe.

    Args:
        folder: the folder; it is made if it does not exist.
        limit_bytes: bytes that all copies together may take.

    Attributes:
        hits: loads that were served from the disk.
        size_bytes: bytes of all copies, when this process last looked.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.hits, self.size_bytes = 0, 0
        self._folder, self._limit_bytes, self._storage = folder, limit_bytes, Storage(str(folder))
        self._lock, self._waiting_bytes = threading.Lock(), 0
        self._writer = ThreadPoolExecutor(1, "disk-cache")  # copies are written in the background
        with suppress(StoreError):
            for entry in self._storage.entries("tmp"):
                if datetime.now(UTC) - entry.modified > _ABANDONED:
                    self._storage.delete(entry.key)
        self._make_room()

    def load(
        self,
        remote: Storage,
        manifest: Manifest,
        device: "torch.device | str" = "cpu",
        buffer: "ReadBuffer | None" = None,
    ) -> "KVCache":
        """The KV cache of a committed artifact, from the disk if an undamaged copy is there. Every byte is verified.

        Raises:
            MissingObjectError: the remote file is gone.
            ArtifactError: the remote file is damaged; no copy of it is kept.
        """
        from sttm.store.kv.file import decode_kv, read_kv

        file = manifest.kv
        try:
            cache = read_kv(self._storage, file.key, manifest.kv_header_digest, file.size_bytes, device, buffer)
            self.hits += 1
            self._mark_used(file.key)
            return cache
        except MissingObjectError:
            pass
        except StoreError as error:
            _log.warning("the copy on disk cannot be used, reading the original: %s", error)
            self._remove(file.key)
        require_size(remote, file)
        data = memoryview(bytearray(file.size_bytes))
        remote.read_into(file.key, [(0, data)])
        if digest_of(data) != file.digest:
            raise ArtifactError(
                f"{remote.url}/{file.key}: the bytes do not match their digest; it was not used: {INDEX_AGAIN}"
            )
        cache = decode_kv(data, f"{remote.url}/{file.key}", device)
        self._keep(file.key, data)
        return cache

    def close(self) -> None:
        """Wait until all copies are written, then stop the writer."""
        self._writer.shutdown(wait=True)

    def _keep(self, key: str, data: memoryview) -> None:
        """Let the writer write a copy, unless too many copies wait already."""
        with self._lock:
            is_behind = self._waiting_bytes > 0 and self._waiting_bytes + len(data) > _WAITING_BYTES
            if is_behind or len(data) > self._limit_bytes:
                return
            self._waiting_bytes += len(data)
        self._writer.submit(self._write, key, data)

    def _write(self, key: str, data: memoryview) -> None:
        try:
            self._storage.put(key, data)
            self._mark_used(key)
            self._make_room()
        except StoreError as error:  # A full disk must not fail an answer.
            _log.warning("cannot keep a copy: %s", error)
        finally:
            with self._lock:
                self._waiting_bytes -= len(data)

    def _make_room(self) -> None:
        entries = self._storage.entries("kv")
        size = sum(entry.size_bytes for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry.modified):
            if size <= self._limit_bytes:
                break
            self._remove(entry.key)
            size -= entry.size_bytes
        self.size_bytes = size

    def _mark_used(self, key: str) -> None:
        """Set the time of a copy to now, in nanoseconds, which is finer than some file systems do by themselves."""
        now = time.time_ns()
        with suppress(OSError):
            os.utime(self._folder / key, ns=(now, now))

    def _remove(self, key: str) -> None:
        with suppress(StoreError):
            self._storage.delete(key)
