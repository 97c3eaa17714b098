"""`kv.safetensors`: the KV cache of one video as one file, written and read by ourselves, open to the stock reader.

One header, then page-aligned regions: the small tables, then the layers in order. A reader fetches the header and
all regions it needs in parallel ranges, and checks every region against a digest that the header carries; the
header's own digest comes from the artifact's manifest.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sttm.errors import ArtifactError
from sttm.kv_cache import KVCache
from sttm.store.kv_header import KVHeader, KVLayout, Region, header_bytes, parse_header
from sttm.store.kv_pack import EncodedKV, pack_kv
from sttm.store.quantize import unpack
from sttm.store.read_buffer import ReadBuffer
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage

FIRST_READ_BYTES = 64 << 10  # holds the header of a 32-layer model
_READERS = 16  # threads that read and check: one copies from the page cache far below memory speed
_PIECE_BYTES = 8 << 20  # read at once, at least, so that a small file is one request


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
    return pack_kv(cache, scheme, notes, scheme_below).encode()


def decode_kv(
    data: bytearray | memoryview, name: str = "kv.safetensors", device: torch.device | str = "cpu"
) -> KVCache:
    """The cache of a file in memory, fully verified; an exact one may share its memory. Errors as for `read_kv`."""
    view = memoryview(data)
    start = header_bytes(bytes(view[:8]), len(view), name)
    header = parse_header(bytes(view[:start]), len(view), name)
    body = view[start:]
    regions = enumerate(header.layout.regions)
    return _decode(header, (_checked(header, i, body[r.begin : r.end], name) for i, r in regions), name, device)


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
    name, regions = f"{storage.url}/{key}", header.layout.regions
    with (buffer or ReadBuffer()).take(header.layout.body_bytes) as body, ThreadPoolExecutor(_READERS) as readers:

        def fetch(piece: range) -> list[list[Tensor]]:
            begin, end = regions[piece[0]].begin, regions[piece[-1]].end
            storage.read_into(key, [(start + begin, body[begin:end])])
            return [_checked(header, i, body[regions[i].begin : regions[i].end], name) for i in piece]

        # While one layer is unpacked, those behind it are read and checked.
        parts = chain.from_iterable(readers.map(fetch, _pieces(regions)))
        cache = _decode(header, parts, name, device)
        if cache.keys[0].is_cuda:  # copies from page-locked memory are under way until the device says so
            torch.cuda.current_stream(cache.keys[0].device).synchronize()
        return _own_memory(cache, header.layout) if buffer else cache


def _pieces(regions: Sequence[Region]) -> list[range]:
    """Indices of regions to read together, in order."""
    pieces, first = [], 0
    for index, region in enumerate(regions):
        if region.end - regions[first].begin >= _PIECE_BYTES or index + 1 == len(regions):
            pieces.append(range(first, index + 1))
            first = index + 1
    return pieces


def read_layers(
    storage: Storage, key: str, first: int, last: int, header_digest: str | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of layers first .. last-1 alone, verified; errors as for `read_kv`."""
    header, start = read_header(storage, key, header_digest)
    regions, name = header.layout.regions[1 + first : 1 + last], f"{storage.url}/{key}"
    buffers = [memoryview(bytearray(region.end - region.begin)) for region in regions]
    storage.read_into(key, [(start + region.begin, buffer) for region, buffer in zip(regions, buffers, strict=True)])
    parts = (_checked(header, 1 + layer, buffer, name) for layer, buffer in enumerate(buffers, first))
    return [_layer(header, layer, part, "cpu") for layer, part in enumerate(parts, first)]


def verify_kv(storage: Storage, key: str, header_digest: str) -> None:
    """Read a stored file region by region and check every byte of it; errors as for `read_kv`."""
    header, start = read_header(storage, key, header_digest)
    for index, region in enumerate(header.layout.regions):
        (data,) = storage.read_ranges(key, [(start + region.begin, start + region.end)])
        _require_digest(header, index, data, f"{storage.url}/{key}")


def _decode(header: KVHeader, parts: Iterable[list[Tensor]], name: str, device: torch.device | str) -> KVCache:
    """The cache of all regions' checked tensors, which are taken one region after the other."""
    layout, rest = header.layout, iter(parts)
    tables = [table.clone() for table in next(rest)]
    layers = [_layer(header, layer, part, device) for layer, part in enumerate(rest)]
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


def _layer(header: KVHeader, layer: int, parts: list[Tensor], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Keys and values on `device`; from page-locked memory the copies run behind, in the order of its stream."""
    return unpack(tuple(part.to(device, non_blocking=True) for part in parts), header.layout.layer_shape(layer))


def _checked(header: KVHeader, index: int, data: memoryview, name: str) -> list[Tensor]:
    """The tensors of one region, without its padding, as views of `data`."""
    _require_digest(header, index, data, name)
    region, tensors = header.layout.regions[index], []
    for placed in region.tensors:
        part, kind = placed.part, placed.part.name.rpartition("_")[2]
        if part.name.endswith(".pad"):
            continue
        tensor = _tensor(data, part.dtype, part.shape, placed.begin - region.begin)
        lowest = {"scale": 0.0, "zero": -torch.inf}.get(kind)
        if lowest is not None and not ((tensor > lowest) & (tensor < torch.inf)).all():
            raise _damaged(f"{name}, layer {index - 1}", "a scale or zero is out of range")
        tensors.append(tensor)
    return tensors


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
