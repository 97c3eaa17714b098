"""`kv.safetensors`: the KV cache of one video as one file, which the stock safetensors reader can open, too.

The file has one header, then page-aligned regions: the small tables, then the layers in order. A reader fetches the
header and the regions it needs in parallel ranges. It checks every region against a digest in the header, and the
header against a digest in the artifact's manifest.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sttm.kv_cache import KVCache
from sttm.store.kv.header import KVHeader, header_bytes, parse_header
from sttm.store.kv.pack import EncodedKV, pack_kv
from sttm.store.kv.read_buffer import ReadBuffer
from sttm.store.kv.unpack import as_bytes, damaged, unpack_body, unpack_tables
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage

FIRST_READ_BYTES = 64 << 10  # holds the header of a 32-layer model
_PIECE_BYTES = 4 << 20  # read at once by one thread


@dataclass(frozen=True)
class Survivors:
    """Where the reduced visual tokens of a stored video come from.

    Attributes:
        boxes: int32 [M, 5], t, y0, x0, y1, x1, half-open, in cells of the grid.
        patches: int32 [M], how many cells each survivor stands for.
        grid: (T, H, W) of the cells before the merge.
    """

    boxes: Tensor
    patches: Tensor
    grid: tuple[int, int, int]


def encode_kv(
    cache: KVCache, scheme: str, notes: Mapping[str, Any] | None = None, scheme_below: str | None = None
) -> EncodedKV:
    """Pack a cache, which may lie on any device, into the bytes of a file.

    Args:
        cache: the cache.
        scheme: name in `SCHEMES`.
        notes: JSON to keep in the header, such as the provenance; at most a few kilobytes.
        scheme_below: scheme of the layers below `merge_layer`; None takes the same scheme.

    Raises:
        StoreError: the cache holds numbers that the scheme cannot store.
    """
    return pack_kv(cache, scheme, notes, scheme_below).encode()


def decode_kv(
    data: bytearray | memoryview, name: str = "kv.safetensors", device: torch.device | str = "cpu"
) -> KVCache:
    """The cache of a file in memory, every byte verified.

    Args:
        data: the bytes of the file. Layers of an `exact` cache on the CPU may share this memory.
        name: name of the file for messages.
        device: where keys and values go.

    Raises:
        ArtifactError: some byte is not what a writer wrote; the message names the region.
    """
    view = memoryview(data)
    start = header_bytes(bytes(view[:8]), len(view), name)
    header = parse_header(bytes(view[:start]), len(view), name)
    body = view[start:]
    for index in range(len(header.digests)):
        _require_digest(header, index, body, name)
    return unpack_body(header, body, lambda end: None, name, device, may_share=True)


def read_header(
    storage: Storage, key: str, digest: str | None = None, size_bytes: int | None = None
) -> tuple[KVHeader, int]:
    """The header of a stored file and its length in bytes.

    Args:
        storage: objects of the store.
        key: key of the file.
        digest: blake3 that the header must have, from the manifest; None checks no digest.
        size_bytes: size of the whole file, from the manifest; None asks the storage.

    Raises:
        ArtifactError: the header is malformed or not the one that was committed.
    """
    name = f"{storage.url}/{key}"
    size = storage.size(key) if size_bytes is None else size_bytes
    data = storage.read(key, 0, min(FIRST_READ_BYTES, size))
    start = header_bytes(data, size, name)
    if start > len(data):
        data += storage.read(key, len(data), start)
    data = data[:start]
    if digest is not None and digest_of(data) != digest:
        raise damaged(name, "its header is not the one that was committed")
    return parse_header(data, size, name), start


def read_kv(
    storage: Storage,
    key: str,
    header_digest: str | None = None,
    size_bytes: int | None = None,
    device: torch.device | str = "cpu",
    buffer: ReadBuffer | None = None,
) -> KVCache:
    """Read and verify a whole stored cache, with keys and values on `device` in the cache's dtype.

    Args:
        storage: objects of the store.
        key: key of the file.
        header_digest: blake3 that the header must have, from the manifest; None checks no digest.
        size_bytes: size of the whole file, from the manifest; None asks the storage.
        device: where to unpack; the packed bytes are copied there.
        buffer: memory for the packed bytes; a caller who reads many files saves time by giving one. The cache never
            shares this memory.

    Raises:
        ArtifactError: some byte is not what was committed; the message names the region.
        StoreError: the file cannot be read.
    """
    name, memory = f"{storage.url}/{key}", buffer or ReadBuffer()
    # Get the real file size in parallel: trusting the header alone would let a forged file make us allocate any amount.
    size = memory.readers.submit(storage.size, key)
    header, start = read_header(storage, key, header_digest, size_bytes)
    if size.result() != start + header.layout.body_bytes:
        raise damaged(name, f"{size.result()} bytes long, expected {start + header.layout.body_bytes}")
    with memory.take(header.layout.body_bytes) as body:
        reading = _Reading(storage, key, start, header, body)
        pieces = [memory.readers.submit(reading.read, piece) for piece in reading.pieces]
        arrived = 0

        def require(end: int) -> None:
            nonlocal arrived
            for piece, read in zip(reading.pieces[arrived:], pieces[arrived:], strict=True):
                if piece.start < end:
                    read.result()
                    arrived += 1

        try:  # while the first layers are unpacked, later ones are read and checked
            return unpack_body(header, body, require, name, device, may_share=buffer is None)
        finally:  # the buffer must not go back to others while it is being filled
            for read in pieces:
                read.cancel()
            wait(pieces)


def read_survivors(
    storage: Storage, key: str, header_digest: str | None = None, size_bytes: int | None = None
) -> Survivors:
    """Read and verify the tables alone, a small part of the file.

    Args:
        storage: objects of the store.
        key: key of the file.
        header_digest: blake3 that the header must have, from the manifest; None checks no digest.
        size_bytes: size of the whole file, from the manifest; None asks the storage.

    Raises:
        ArtifactError: the header or the tables are not what was committed.
        StoreError: the file cannot be read.
    """
    header, start = read_header(storage, key, header_digest, size_bytes)
    region, name = header.layout.regions[0], f"{storage.url}/{key}"
    data = memoryview(bytearray(storage.read(key, start, start + region.end)))
    _require_digest(header, 0, data, name)
    tables = unpack_tables(header.layout, as_bytes(data), name)
    return Survivors(tables["boxes"], tables["patches"], header.layout.grid)


class _Reading:
    """Fills `body` piece by piece from any number of threads. The thread that completes a region checks its digest.

    Attributes:
        pieces: byte ranges of the body, in order. A region is verified once all pieces that overlap it were read.
    """

    def __init__(self, storage: Storage, key: str, start: int, header: KVHeader, body: memoryview) -> None:
        self._storage, self._key, self._start, self._header, self._body = storage, key, start, header, body
        self._lock, self._missing = threading.Lock(), [r.end - r.begin for r in header.layout.regions]
        size = header.layout.body_bytes
        self.pieces = [range(at, min(at + _PIECE_BYTES, size)) for at in range(0, size, _PIECE_BYTES)]

    def read(self, piece: range) -> None:
        """Read one piece, and check the regions that it completes.

        Raises:
            ArtifactError: a region does not match its digest.
            StoreError: the file cannot be read.
        """
        self._storage.read_into(self._key, [(self._start + piece.start, self._body[piece.start : piece.stop])])
        for index, region in enumerate(self._header.layout.regions):
            brought = min(piece.stop, region.end) - max(piece.start, region.begin)
            if brought > 0:
                with self._lock:
                    self._missing[index] -= brought
                    is_whole = self._missing[index] == 0
                if is_whole:
                    _require_digest(self._header, index, self._body, f"{self._storage.url}/{self._key}")


def verify_kv(storage: Storage, key: str, header_digest: str) -> None:
    """Read a stored file region by region and check every byte of it.

    Raises:
        ArtifactError: some byte is not what was committed; the message names the region.
        StoreError: the file cannot be read.
    """
    header, start = read_header(storage, key, header_digest)
    for index, region in enumerate(header.layout.regions):
        (data,) = storage.read_ranges(key, [(start + region.begin, start + region.end)])
        _require_digest(header, index, memoryview(data), f"{storage.url}/{key}", region.begin)


def _require_digest(header: KVHeader, index: int, data: memoryview, name: str, start: int = 0) -> None:
    """Raise an ArtifactError unless region `index` matches its digest. `data` begins at byte `start` of the body."""
    region = header.layout.regions[index]
    if digest_of(data[region.begin - start : region.end - start]) != header.digests[index]:
        place = "the tables" if index == 0 else f"layer {index - 1}"
        raise damaged(f"{name}, {place}", "the bytes do not match their digest")
