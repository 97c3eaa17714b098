"""`kv.safetensors`: the KV cache of one video as one file, written and read by ourselves, open to the stock reader.

One header, then page-aligned regions: the small tables, then the layers in order. A reader fetches the header and
all regions it needs in parallel ranges, and checks every region against a digest that the header carries; the
header's own digest comes from the artifact's manifest.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sttm.errors import ArtifactError
from sttm.kv_cache import KVCache
from sttm.store.kv_header import KVHeader, KVLayout, Region, header_bytes, parse_header
from sttm.store.quantize import pack, unpack
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage

FIRST_READ_BYTES = 64 << 10  # holds the header of a 32-layer model
_EMPTY_DIGEST = "0" * 64


@dataclass(frozen=True)
class EncodedKV:
    """A finished `kv.safetensors`.

    Attributes:
        data: all bytes of the file; page-locked if the cache was on a GPU.
        header: as the file begins with it.
        header_digest: blake3 of the bytes before the body; it covers the digests of all regions.
        digest: blake3 of the whole file.
    """

    data: memoryview
    header: KVHeader
    header_digest: str
    digest: str

    def __repr__(self) -> str:
        return f"EncodedKV({len(self.data)} bytes, {self.header.layout.scheme})"


class ReadBuffer:
    """Memory that one read after another goes through: faulting in fresh pages costs more than reading a local file.

    Thread-safe: while it is taken, others get fresh memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[memoryview]:
        """At least this memory for the length of the block; what was in it before is undefined."""
        if not self._lock.acquire(blocking=False):
            yield _fresh(size_bytes).numpy().data
            return
        try:
            if len(self._memory) < size_bytes:
                self._memory = _fresh(size_bytes)
            yield self._memory.numpy().data[:size_bytes]
        finally:
            self._lock.release()


def _fresh(size_bytes: int) -> Tensor:
    """Not a bytearray, which would first fill itself with zeros; page-locked where a GPU will copy from it."""
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def encode_kv(
    cache: KVCache, scheme: str, notes: Mapping[str, Any] | None = None, scheme_below: str | None = None
) -> EncodedKV:
    """Pack a cache, on whatever device it is, into the bytes of a file.

    Args:
        cache: keys before RoPE.
        scheme: name in `SCHEMES`.
        notes: JSON to carry along: rope parameters, provenance. At most a few kilobytes.
        scheme_below: of the layers below `merge_layer`; None: the same.

    Raises:
        StoreError: the cache holds numbers that the scheme cannot store.
    """
    layout = KVLayout.of(cache, scheme, scheme_below)
    places = (cache.next_position, cache.reduced_next_position)
    draft = KVHeader(layout, *places, (_EMPTY_DIGEST,) * len(layout.regions), notes or {})
    start, on_gpu = len(draft.to_bytes()), cache.keys[0].is_cuda
    # PyTorch keeps freed page-locked memory for the next video: copies into it run at the full rate of the bus.
    whole = torch.empty(start + layout.body_bytes, dtype=torch.uint8, pin_memory=on_gpu)
    for index, region in enumerate(layout.regions):
        tensors = _head_tensors(cache) if index == 0 else _layer_tensors(cache, layout, index - 1)
        _fill(whole[start + region.begin : start + region.end], region, tensors)
    if on_gpu:
        torch.cuda.current_stream(cache.keys[0].device).synchronize()
    data = whole.numpy().data
    digests = tuple(digest_of(data[start + region.begin : start + region.end]) for region in layout.regions)
    header = KVHeader(layout, *places, digests, notes or {})
    data[:start] = header.to_bytes()
    return EncodedKV(data, header, digest_of(data[:start]), digest_of(data))


def decode_kv(
    data: bytearray | memoryview, name: str = "kv.safetensors", device: torch.device | str = "cpu"
) -> KVCache:
    """The cache of a file in memory, fully verified; an exact one may share its memory. Errors as for `read_kv`."""
    view = memoryview(data)
    start = header_bytes(bytes(view[:8]), len(view), name)
    header = parse_header(bytes(view[:start]), len(view), name)
    return _decode(header, view[start:], name, device)


def read_header(
    storage: Storage, key: str, digest: str | None = None, size_bytes: int | None = None
) -> tuple[KVHeader, int]:
    """The header of a stored file and its length in bytes.

    Args:
        storage, key: where the file is.
        digest: blake3 that the header must have, from the manifest.
        size_bytes: of the whole file, from the manifest; asked of the storage if not given.

    Raises:
        ArtifactError: the header is malformed or not the one the manifest names.
    """
    name = f"{storage.url}/{key}"
    size = storage.size(key) if size_bytes is None else size_bytes
    data = storage.read(key, 0, min(FIRST_READ_BYTES, size))
    start = header_bytes(data, size, name)
    if start > len(data):
        data += storage.read(key, len(data), start)
    data = data[:start]
    if digest is not None and digest_of(data) != digest:
        raise _damaged(name, "its header is not the one that was committed")
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
        storage, key: where the file is.
        header_digest, size_bytes: what the header and the file must have, as for `read_header`.
        device: where to unpack; the packed bytes travel there.
        buffer: memory for the packed bytes, for one who reads many files; the cache never shares it.

    Raises:
        ArtifactError: some byte is not what was committed; the message names the region.
        StoreError: the file cannot be read.
    """
    header, start = read_header(storage, key, header_digest, size_bytes)
    with (buffer or ReadBuffer()).take(header.layout.body_bytes) as body:
        storage.read_into(key, [(start, body)])
        cache = _decode(header, body, f"{storage.url}/{key}", device)
        return _own_memory(cache, header.layout) if buffer else cache


def read_layers(
    storage: Storage, key: str, first: int, last: int, header_digest: str | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of layers first .. last-1 alone, verified; errors as for `read_kv`."""
    header, start = read_header(storage, key, header_digest)
    regions, name = header.layout.regions[1 + first : 1 + last], f"{storage.url}/{key}"
    buffers = [memoryview(bytearray(region.end - region.begin)) for region in regions]
    storage.read_into(key, [(start + region.begin, buffer) for region, buffer in zip(regions, buffers, strict=True)])
    return [_layer(header, layer, buffer, name, "cpu") for layer, buffer in enumerate(buffers, first)]


def verify_kv(storage: Storage, key: str, header_digest: str) -> None:
    """Read a stored file region by region and check every byte of it; errors as for `read_kv`."""
    header, start = read_header(storage, key, header_digest)
    for index, region in enumerate(header.layout.regions):
        (data,) = storage.read_ranges(key, [(start + region.begin, start + region.end)])
        _require_digest(header, index, data, f"{storage.url}/{key}")


def _head_tensors(cache: KVCache) -> tuple[Tensor, ...]:
    places = (cache.positions, cache.reduced_positions, cache.visual, cache.boxes)
    tables = (cache.prefix_ids, *places, cache.patches, cache.multiplicity)
    return (cache.frame_seconds.double(), *(table.to(torch.int32) for table in tables))


def _layer_tensors(cache: KVCache, layout: KVLayout, layer: int) -> tuple[Tensor, ...]:
    return pack(cache.keys[layer], cache.values[layer], layout.layer_shape(layer))


def _fill(out: Tensor, region: Region, tensors: Sequence[Tensor]) -> None:
    """Copy the tensors of a region to their places in `out`, uint8 [bytes]; from a GPU without waiting."""
    filled = 0
    for placed, tensor in zip(region.tensors, tensors, strict=False):  # the region may end in padding
        if tuple(tensor.shape) != placed.part.shape or tensor.dtype != placed.part.dtype:
            raise ValueError(f"{placed.part.name}: {tensor.dtype} {tuple(tensor.shape)}, planned {placed.part}")
        filled = placed.end - region.begin
        target = out[placed.begin - region.begin : filled]
        target.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
    out[filled:] = 0


def _decode(header: KVHeader, body: memoryview, name: str, device: torch.device | str) -> KVCache:
    layout = header.layout
    parts = [body[region.begin : region.end] for region in layout.regions]
    head = _verified(header, 0, parts[0], name)
    layers = [_layer(header, layer, part, name, device) for layer, part in enumerate(parts[1:])]
    tables = (table.clone() for table in head)
    seconds, prefix_ids, positions, reduced_positions, visual, boxes, patches, multiplicity = tables
    _check_tables(layout, seconds, visual, boxes, patches, multiplicity, name)
    return KVCache(
        keys=tuple(key for key, _ in layers),
        values=tuple(value for _, value in layers),
        merge_layer=layout.merge_layer,
        prefix_ids=prefix_ids,
        positions=positions,
        reduced_positions=reduced_positions,
        next_position=header.next_position,
        reduced_next_position=header.reduced_next_position,
        visual=visual,
        boxes=boxes,
        patches=patches,
        multiplicity=multiplicity,
        grid=layout.grid,
        frame_seconds=seconds,
    )


def _own_memory(cache: KVCache, layout: KVLayout) -> KVCache:
    """The cache without views of the bytes it was read from, which exact layers on the CPU are."""
    keys, values = (
        tuple(t.clone() if t.is_cpu and layout.scheme_of(layer) == "exact" else t for layer, t in enumerate(tensors))
        for tensors in (cache.keys, cache.values)
    )
    return replace(cache, keys=keys, values=values)


def _layer(
    header: KVHeader, layer: int, data: memoryview, name: str, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    parts = _verified(header, 1 + layer, data, name)
    for placed, part in zip(header.layout.regions[1 + layer].tensors, parts, strict=False):
        kind = placed.part.name.rpartition("_")[2]
        lowest = {"scale": 0.0, "zero": -torch.inf}.get(kind)
        if lowest is not None and not ((part > lowest) & (part < torch.inf)).all():
            raise _damaged(f"{name}, layer {layer}", "a scale or zero is out of range")
    return unpack(tuple(part.to(device) for part in parts), header.layout.layer_shape(layer))


def _verified(header: KVHeader, index: int, data: memoryview, name: str) -> list[Tensor]:
    """The tensors of one region, without its padding, as views of `data`."""
    _require_digest(header, index, data, name)
    region = header.layout.regions[index]
    tensors = [placed for placed in region.tensors if not placed.part.name.endswith(".pad")]
    return [_tensor(data, placed.part.dtype, placed.part.shape, placed.begin - region.begin) for placed in tensors]


def _require_digest(header: KVHeader, index: int, data: bytes | memoryview, name: str) -> None:
    if digest_of(data) != header.digests[index]:
        place = "the tables" if index == 0 else f"layer {index - 1}"
        raise _damaged(f"{name}, {place}", "the bytes do not match their digest")


def _tensor(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], begin: int) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.frombuffer(data, dtype=dtype, count=count, offset=begin).view(shape) if count else torch.empty(shape)


def _check_tables(
    layout: KVLayout,
    seconds: Tensor,
    visual: Tensor,
    boxes: Tensor,
    patches: Tensor,
    multiplicity: Tensor,
    name: str,
) -> None:
    T, H, W = layout.grid
    low, high = boxes[:, [0, 1, 2]], boxes[:, [0, 3, 4]] + torch.tensor([1, 0, 0])
    inside = bool((low >= 0).all() and (high <= torch.tensor([T, H, W])).all() and (low < high).all())
    ordered = bool((visual.diff() > 0).all() and visual[0] >= 0 and visual[-1] < layout.tokens[1])
    if not (
        inside and ordered and torch.isfinite(seconds).all() and (patches >= 1).all() and (multiplicity >= 1).all()
    ):
        raise _damaged(f"{name}, the tables", "boxes, places or times are out of range")


def _damaged(place: str, cause: str) -> ArtifactError:
    return ArtifactError(f"{place}: {cause}; it was not used. Delete the artifact and index the video again")
