"""Copies of remote KV files on a local disk. A copy is trusted no more than the network: digests decide."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sttm.errors import ArtifactError, StoreError
from sttm.store.artifact import Manifest
from sttm.store.lru import ByteLRU
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage

if TYPE_CHECKING:
    import torch

    from sttm.kv_cache import KVCache
    from sttm.store.read_buffer import ReadBuffer

_log = logging.getLogger(__name__)
_ABANDONED = timedelta(hours=1)  # a half-written copy this old has no writer any more


class DiskCache:
    """KV files of one remote store under a local folder, the least recently used removed beyond a number of bytes.

    Several processes may share the folder; each keeps it below its own limit. Thread-safe.

    Args:
        folder: made if need be.
        limit_bytes: what all copies together may take.

    Attributes:
        hits: loads served from the disk.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.hits = 0
        self._storage, self._lock = Storage(str(folder)), threading.Lock()
        self._held: ByteLRU[None] = ByteLRU(limit_bytes)
        self._writer = ThreadPoolExecutor(1, "disk-cache")  # nobody waits for a copy to be written
        self._adopt()

    @property
    def size_bytes(self) -> int:
        """Bytes of all copies."""
        return self._held.size_bytes

    def load(
        self,
        remote: Storage,
        manifest: Manifest,
        device: "torch.device | str" = "cpu",
        buffer: "ReadBuffer | None" = None,
    ) -> "KVCache":
        """The KV cache of a committed artifact, every byte verified, from the disk if it is there and sound.

        Raises:
            MissingObjectError: the remote file is gone.
            ArtifactError: the remote file is damaged; nothing of it is kept.
        """
        from sttm.store.kv import decode_kv, read_kv

        file = manifest.kv
        if self._has(file.key):
            try:
                cache = read_kv(self._storage, file.key, manifest.kv_header_digest, file.size_bytes, device, buffer)
                self.hits += 1
                return cache
            except StoreError as error:
                _log.warning("the copy on disk is of no use, reading the original: %s", error)
                self._remove(file.key)
        data = memoryview(bytearray(file.size_bytes))
        remote.read_into(file.key, [(0, data)])
        if digest_of(data) != file.digest:
            raise ArtifactError(
                f"{remote.url}/{file.key}: the bytes do not match their digest; it was not used. "
                "Delete the artifact and index the video again"
            )
        cache = decode_kv(data, f"{remote.url}/{file.key}", device)
        self._writer.submit(self._keep, file.key, data)
        return cache

    def close(self) -> None:
        """Wait until all copies are written."""
        self._writer.shutdown(wait=True)

    def _adopt(self) -> None:
        """Go on with what an earlier process left."""
        with suppress(StoreError):
            for entry in self._storage.entries("tmp"):
                if datetime.now(UTC) - entry.modified > _ABANDONED:
                    self._storage.delete(entry.key)
        for entry in sorted(self._storage.entries("kv"), key=lambda entry: entry.modified):
            for key, _ in self._held.put(entry.key, None, entry.size_bytes):
                self._remove(key)

    def _has(self, key: str) -> bool:
        with self._lock:
            was_held = key in self._held
            self._held.get(key)
        return was_held

    def _keep(self, key: str, data: memoryview) -> None:
        try:
            self._storage.put(key, data)
        except StoreError as error:  # a full disk costs speed, never an answer
            _log.warning("cannot keep a copy: %s", error)
            return
        with self._lock:
            gone = self._held.put(key, None, len(data))
        for old, _ in gone:
            self._remove(old)

    def _remove(self, key: str) -> None:
        with self._lock:
            self._held.drop(key)
        with suppress(StoreError):
            self._storage.delete(key)
