"""Unpacking the body of a `kv.safetensors` into a cache: neighbouring layers of one shape as one batch.

A GPU gets each batch's bytes as they arrive, in one copy, and a dozen launches for all its layers.
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

_AT_ONCE_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}  # packed: a GPU waits for launches, a CPU for memory
_LOWEST = {"scale": 0.0, "zero": -math.inf}  # what scales and zeros must be above


def unpack_body(
    header: KVHeader,
    body: memoryview,
    require: Callable[[int], None],
    name: str,
    device: torch.device | str,
    may_share: bool,
) -> KVCache:
    """The cache of a body, with keys and values on `device`.

    Args:
        header: of the file.
        body: what follows it.
        require: is called with a place in the body before the bytes up to there are used; raises if they are unsound.
        name: of the file, for messages.
        device: where to unpack.
        may_share: whether exact layers on the CPU may be views of the body.

    Raises:
        ArtifactError: numbers that no writer makes.
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
        # From page-locked memory the copy runs behind, in the order of the device's stream.
        unpacked.add(layers, as_bytes(body[begin:end]).to(device, non_blocking=True))
    unpacked.require_sound()
    if device.type == "cuda":  # the body is read until the device says so
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
    """Keys and values of the layers so far, each batch of equal layers unpacked together.

    Args:
        layout: what is where.
        name: of the file, for messages.
        may_share: whether exact layers may be views of the bytes.

    Attributes:
        keys, values: a layer [heads, tokens, head_dim] each.
    """

    def __init__(self, layout: KVLayout, name: str, may_share: bool) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._layout, self._name, self._may_share = layout, name, may_share
        self._lowest: list[tuple[range, float]] = []
        self._extremes: list[tuple[Tensor, Tensor]] = []

    def add(self, layers: range, data: Tensor) -> None:
        """Unpack layers of one shape from all bytes of their regions, uint8, on their device."""
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
        """Refuse scales and zeros that no writer makes; this waits for the device, once."""
        if not self._extremes:
            return
        found = torch.stack([torch.cat(side) for side in zip(*self._extremes, strict=True)]).tolist()
        places = [(layer, lowest) for layers, lowest in self._lowest for layer in layers]
        for (layer, lowest), low, high in zip(places, *found, strict=True):
            if not (low > lowest and high < math.inf):
                raise damaged(f"{self._name}, layer {layer}", "a scale or zero is out of range")


def as_bytes(data: memoryview) -> Tensor:
    """uint8 [bytes], the same memory."""
    return torch.frombuffer(data, dtype=torch.uint8)


def _tensors(layout: KVLayout, layers: range, data: Tensor) -> dict[str, Tensor]:
    """The tensors [layers, ...] of neighbouring layers of one shape, without padding, as views of `data` by name.

    Args:
        layers: range(-1, 0) stands for the head region.
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
    """The tables of the head region, uint8, by their names in `KVCache`, in memory of their own."""
    tables = {kind: table[0].clone() for kind, table in _tensors(layout, range(-1, 0), data).items()}
    visual, seconds = tables["visual"], tables["frame_seconds"]
    inside = are_inside(tables["boxes"], layout.grid)
    ordered = bool((visual.diff() > 0).all() and visual[0] >= 0 and visual[-1] < layout.tokens[1])
    counted = bool((tables["patches"] >= 1).all() and (tables["multiplicity"] >= 1).all())
    if not (inside and ordered and counted and torch.isfinite(seconds).all()):
        raise damaged(f"{name}, the tables", "boxes, places or times are out of range")
    return tables


def are_inside(boxes: Tensor, grid: tuple[int, int, int]) -> bool:
    """Whether boxes int32 [M, 5] (t, y0, x0, y1, x1), half-open, hold cells of the grid (T, H, W), and no others."""
    low, high = boxes[:, [0, 1, 2]], boxes[:, [0, 3, 4]] + torch.tensor([1, 0, 0])
    return bool((low >= 0).all() and (high <= torch.tensor(grid)).all() and (low < high).all())


def damaged(place: str, cause: str) -> ArtifactError:
    """The error for bytes that are not what was committed."""
    return ArtifactError(f"{place}: {cause}; it was not used: {INDEX_AGAIN}")
