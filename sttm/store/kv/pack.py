"""Packing a cache into the bytes of a `kv.safetensors`: first the work of the cache's device, then the work of the CPU.

A GPU is given all its work at once (packing on its current stream, the copies on another) and goes on to the next
video. The thread that publishes the artifact waits for the bytes, checks and digests them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sttm.kv_cache import KVCache, group_layers
from sttm.store.kv.download import Download, Downloaded, empty_for_copies
from sttm.store.kv.header import KVHeader, KVLayout, Region
from sttm.store.kv.quantize import pack_unchecked, require_storable
from sttm.store.sealed import digest_of

_EMPTY_DIGEST = "0" * 64
# Packed bytes of a batch: launches are what a GPU waits for, memory is what a CPU waits for.
_AT_ONCE_BYTES = {"cpu": 0, "cuda": 32 << 20}


@dataclass(frozen=True)
class EncodedKV:
    """A finished `kv.safetensors`.

    Attributes:
        data: all bytes of the file; page-locked if the cache was on a GPU.
        header: the header at the beginning of the file.
        header_digest: blake3 of the bytes before the body, which hold the digests of all regions.
        digest: blake3 of the whole file.
    """

    data: memoryview
    header: KVHeader
    header_digest: str
    digest: str

    def __repr__(self) -> str:
        return f"EncodedKV({len(self.data)} bytes, {self.header.layout.scheme})"


@dataclass(frozen=True)
class PackedKV:
    """A `kv.safetensors` whose bytes are on their way to the CPU and whose digests are still to be taken.

    Attributes:
        layout: the numbers that decide where each tensor lies.
        places: position of the first token after the prefix, in layers below `merge_layer` and from it on.
        notes: JSON to keep in the header.
        whole: uint8 [bytes of the file], to be read after `arrived.wait()`; the header is still missing.
        extremes: float32 [layers, 2, 4] from `pack_unchecked` for each batch of layers, to be read after
            `arrived.wait()`.
        arrived: the copies into `whole` and `extremes`.
    """

    layout: KVLayout
    places: tuple[int, int]
    notes: Mapping[str, Any]
    whole: Tensor
    extremes: tuple[Tensor, ...]
    arrived: Downloaded

    def encode(self) -> EncodedKV:
        """Wait for the bytes, check and digest them; needs no GPU.

        Raises:
            StoreError: the cache holds numbers that the scheme cannot store.
        """
        layout, data = self.layout, self.whole.numpy().data
        self.arrived.wait()
        for layer, found in enumerate(torch.cat(self.extremes)):
            require_storable(found, layout.layer_shape(layer))
        start = len(data) - layout.body_bytes
        digests = tuple(digest_of(data[start + region.begin : start + region.end]) for region in layout.regions)
        header = KVHeader(layout, *self.places, digests, self.notes)
        data[:start] = header.to_bytes()
        return EncodedKV(data, header, digest_of(data[:start]), digest_of(data))


def pack_kv(
    cache: KVCache,
    scheme: str,
    notes: Mapping[str, Any] | None = None,
    scheme_below: str | None = None,
    download: Download | None = None,
) -> PackedKV:
    """Pack a cache on its device and start the copies to the CPU; does not wait for a GPU.

    Args:
        cache: the cache.
        scheme: name in `SCHEMES`.
        notes: JSON to keep in the header, such as the provenance; at most a few kilobytes.
        scheme_below: scheme of the layers below `merge_layer`; None takes the same scheme.
        download: makes the copies from a GPU; None makes a new one.
    """
    layout, download = KVLayout.of(cache, scheme, scheme_below), download or Download()
    places = (cache.next_position, cache.reduced_next_position)
    draft = KVHeader(layout, *places, (_EMPTY_DIGEST,) * len(layout.regions), notes or {})
    start = len(draft.to_bytes())
    whole = empty_for_copies((start + layout.body_bytes,), torch.uint8, cache.keys[0].is_cuda)
    extremes = []

    def fill(region: Region, tensors: Sequence[Tensor]) -> None:
        _fill(whole[start + region.begin : start + region.end], region, tensors, download)

    fill(layout.regions[0], _head_tensors(cache))
    for layers in _batches(cache, layout):
        shape = layout.layer_shape(layers.start)
        keys, values = (_stacked(tensors[layers.start : layers.stop]) for tensors in (cache.keys, cache.values))
        parts, found = pack_unchecked(keys, values, shape)
        extremes.append(download.fetch(found))
        for number, layer in enumerate(layers):
            fill(layout.regions[1 + layer], [part[number] for part in parts])
    return PackedKV(layout, places, notes or {}, whole, tuple(extremes), download.started())


def _batches(cache: KVCache, layout: KVLayout) -> Iterator[range]:
    """Runs of layers of one shape and device to pack together; an `exact` layer is only copied, so it is alone."""
    kinds = [(layout.layer_shape(layer), key.device) for layer, key in enumerate(cache.keys)]
    sizes = [region.end - region.begin for region in layout.regions[1:]]
    for layers in group_layers(kinds, sizes, _AT_ONCE_BYTES[cache.keys[0].device.type]):
        if layout.layer_shape(layers.start).scheme == "exact":
            yield from (range(layer, layer + 1) for layer in layers)
        else:
            yield layers


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """The layers as one tensor [layers, ...]; a single layer is not copied."""
    return layers[0][None] if len(layers) == 1 else torch.stack(tuple(layers))


def _head_tensors(cache: KVCache) -> tuple[Tensor, ...]:
    places = (cache.positions, cache.reduced_positions, cache.visual, cache.boxes)
    tables = (cache.prefix_ids, *places, cache.patches, cache.multiplicity)
    return (cache.frame_seconds.double(), *(table.to(torch.int32) for table in tables))


def _fill(out: Tensor, region: Region, tensors: Sequence[Tensor], download: Download) -> None:
    """Start the copies of a region's tensors to their places in `out`, uint8 [bytes of the region]."""
    filled = 0
    for placed, tensor in zip(region.tensors, tensors, strict=False):  # the region may end in padding
        if tuple(tensor.shape) != placed.part.shape or tensor.dtype != placed.part.dtype:
            raise ValueError(f"{placed.part.name}: {tensor.dtype} {tuple(tensor.shape)}, planned {placed.part}")
        filled = placed.end - region.begin
        target = out[placed.begin - region.begin : filled]
        download.copy(tensor, target.view(tensor.dtype).view(tensor.shape))
    out[filled:] = 0
