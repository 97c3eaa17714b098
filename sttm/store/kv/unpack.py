"""Unpacking the body of a `kv.safetensors` into a cache, with neighbouring layers of one shape in one batch.

A GPU gets the bytes of each batch in one copy as they arrive, and a dozen kernel launches for all layers of the batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sttm.errors import ArtifactError
from sttm.kv_cache import KVCache, group_layers
from sttm.store.kv.header import KVHeader, KVLayout
from sttm.store.kv.quantize import unpack
from sttm.store.storage import INDEX_AGAIN

# Packed bytes of a batch: launches are what a GPU waits for, memory is what a CPU waits for.
_AT_ONCE_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
_LOWEST = {"scale": 0.0, "zero": -math.inf}  # scales and zeros must be greater than these


def unpack_body(
    header: KVHeader,
    body: memoryview,
    require: Callable[[int], None],
    name: str,
    device: torch.device | str,
    may_share: bool,
) -> KVCache:
    """Unpack the body of a file into a cache.

    Args:
        header: header of the file.
        body: the bytes after the header.
        require: called with an offset in the body before the bytes up to there are used; waits for them, and raises if
            they do not match their digests.
        name: name of the file for messages.
        device: where keys and values go.
        may_share: whether `exact` layers on the CPU may be views of the body.

    Raises:
        ArtifactError: the body holds numbers that no writer makes.
    """
    layout, device = header.layout, torch.device(device)
    regions = layout.regions
    require(regions[0].end)
    tables = unpack_tables(layout, as_bytes(body[: regions[0].end]), name)
    kinds = [layout.layer_shape(layer) for layer in range(len(layout.heads))]
    sizes = [region.end - region.begin for region in regions[1:]]
    unpacked = UnpackedLayers(layout, name, may_share and device.type == "cpu")
    for layers in group_layers(kinds, sizes, _AT_ONCE_BYTES[device.type]):
        begin, end = regions[1 + layers.start].begin, regions[layers.stop].end
        require(end)
        # From page-locked memory the copy is asynchronous, in the order of the device's stream.
        unpacked.add(layers, as_bytes(body[begin:end]).to(device, non_blocking=True))
    unpacked.require_sound()
    if device.type == "cuda":  # the copies may still read the body, whose memory the caller reuses
        torch.cuda.current_stream(device).synchronize()
    return KVCache(
        keys=tuple(unpacked.keys),
        values=tuple(unpacked.values),
        merge_layer=layout.merge_layer,
        next_position=header.next_position,
        reduced_next_position=header.reduced_next_position,
        grid=layout.grid,
        **tables,
    )


class UnpackedLayers:
    """Collects the unpacked keys and values of the layers, batch by batch.

    Args:
        layout: the numbers that decide where each tensor lies.
        name: name of the file for messages.
        may_share: whether `exact` layers may be views of the bytes.

    Attributes:
        keys, values: [heads, tokens, head_dim] for each layer unpacked so far.
    """

    def __init__(self, layout: KVLayout, name: str, may_share: bool) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._layout, self._name, self._may_share = layout, name, may_share
        self._lowest: list[tuple[range, float]] = []
        self._extremes: list[tuple[Tensor, Tensor]] = []

    def add(self, layers: range, data: Tensor) -> None:
        """Unpack layers of one shape.

        Args:
            layers: numbers of the layers.
            data: uint8, all bytes of their regions, on the device of the result.
        """
        tensors, shape = _tensors(self._layout, layers, data), self._layout.layer_shape(layers.start)
        key, value = unpack(tuple(tensors.values()), shape)
        if shape.scheme == "exact" and not self._may_share:
            key, value = key.clone(), value.clone()
        self.keys += key.unbind()
        self.values += value.unbind()
        for kind, tensor in tensors.items():
            lowest = _LOWEST.get(kind.rpartition("_")[2])
            if lowest is not None:
                self._lowest.append((layers, lowest))
                low, high = tensor.flatten(1).aminmax(dim=1)
                self._extremes.append((low, high))

    def require_sound(self) -> None:
        """Check all scales and zeros; waits for the device once.

        Raises:
            ArtifactError: a scale or a zero is out of range.
        """
        if not self._extremes:
            return
        found = torch.stack([torch.cat(side) for side in zip(*self._extremes, strict=True)]).tolist()
        places = [(layer, lowest) for layers, lowest in self._lowest for layer in layers]
        for (layer, lowest), low, high in zip(places, *found, strict=True):
            if not (low > lowest and high < math.inf):
                raise damaged(f"{self._name}, layer {layer}", "a scale or zero is out of range")


def as_bytes(data: memoryview) -> Tensor:
    """The bytes as a uint8 tensor that shares their memory."""
    return torch.frombuffer(data, dtype=torch.uint8)


def _tensors(layout: KVLayout, layers: range, data: Tensor) -> dict[str, Tensor]:
    """The tensors [layers, ...] of neighbouring layers of one shape by name, without padding, as views of `data`.

    Args:
        layout: the numbers that decide where each tensor lies.
        layers: numbers of the layers; range(-1, 0) stands for the head region.
        data: uint8, all bytes of their regions.
    """
    region, rows = layout.regions[1 + layers.start], data.view(len(layers), -1)
    found = {}
    for placed in region.tensors:
        part, kind = placed.part, placed.part.name.rpartition(".")[2]
        if kind != "pad":
            numbers = rows[:, placed.begin - region.begin : placed.end - region.begin].view(part.dtype)
            found[kind] = numbers.unflatten(1, part.shape)
    return found


def unpack_tables(layout: KVLayout, data: Tensor, name: str) -> dict[str, Tensor]:
    """Copies of the tables of the head region by their names in `KVCache`.

    Args:
        layout: the numbers that decide where each tensor lies.
        data: uint8, all bytes of the head region.
        name: name of the file for messages.

    Raises:
        ArtifactError: a box, a place or a time is out of range.
    """
    tables = {kind: table[0].clone() for kind, table in _tensors(layout, range(-1, 0), data).items()}
    visual, seconds = tables["visual"], tables["frame_seconds"]
    inside = are_inside(tables["boxes"], layout.grid)
    ordered = bool((visual.diff() > 0).all() and visual[0] >= 0 and visual[-1] < layout.tokens[1])
    counted = bool((tables["patches"] >= 1).all() and (tables["multiplicity"] >= 1).all())
    if not (inside and ordered and counted and torch.isfinite(seconds).all()):
        raise damaged(f"{name}, the tables", "boxes, places or times are out of range")
    return tables


def are_inside(boxes: Tensor, grid: tuple[int, int, int]) -> bool:
    """Whether boxes int32 [M, 5] (t, y0, x0, y1, x1), half-open, are not empty and lie in the grid (T, H, W)."""
    low, high = boxes[:, [0, 1, 2]], boxes[:, [0, 3, 4]] + torch.tensor([1, 0, 0])
    return bool((low >= 0).all() and (high <= torch.tensor(grid)).all() and (low < high).all())


def damaged(place: str, cause: str) -> ArtifactError:
    """The error for bytes that are not what was committed."""
    return ArtifactError(f"{place}: {cause}; it was not used: {INDEX_AGAIN}")
