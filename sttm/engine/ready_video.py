"""A stored video on the model's devices, with its keys rotated once for all questions."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sttm.engine.decoder import key_bias, moved, rotary, rotate
from sttm.kv_cache import KVCache, group_layers
from sttm.models.language_model import LanguageModel
from sttm.models.placement import Devices, as_devices

_ROTATED_AT_ONCE_BYTES = (
    32 << 20
)  # keys of several layers are rotated at once, for few kernel launches in bounded memory


@dataclass(frozen=True)
class ReadyVideo:
    """A video's KV cache in the form that attention takes: rotated keys, each layer on the device of the model's layer.

    Attributes:
        keys: for each layer [heads, tokens, D], rotated.
        values: for each layer [heads, tokens, D].
        merge_layer: first layer that holds only the tokens that the merge kept.
        next_positions: first free position in the layers below `merge_layer`, and in those from it on.
        position_axes: 1 for RoPE, 3 for M-RoPE.
        bias: float32 [tokens], added to the attention logits of the keys from `merge_layer` on. None adds nothing.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    merge_layer: int
    next_positions: tuple[int, int]
    position_axes: int
    bias: Tensor | None = None

    def group(self, layer: int) -> int:
        """0 for a layer below `merge_layer`, 1 for a layer from it on."""
        return int(layer >= self.merge_layer)

    @property
    def size_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def to(self, devices: Devices, pinned: bool = False) -> "ReadyVideo":
        """A copy of the video on other devices.

        Args:
            devices: one device for all layers, or one for each layer, as in `LanguageModel.layer_devices`.
            pinned: put it into page-locked memory, which a GPU copies at full rate; for the CPU only.
        """

        def placed(tensor: Tensor, device: torch.device) -> Tensor:
            tensor = tensor.to(device, non_blocking=tensor.is_pinned())
            return tensor.pin_memory() if pinned else tensor

        each = as_devices(devices)
        each = each * len(self.keys) if len(each) == 1 else each
        bias = None if self.bias is None else placed(self.bias, each[-1])
        return replace(
            self, keys=tuple(map(placed, self.keys, each)), values=tuple(map(placed, self.values, each)), bias=bias
        )


@torch.inference_mode()
def ready(model: LanguageModel, cache: KVCache) -> ReadyVideo:
    """Bring a cache to the model's devices and dtype and rotate its keys."""
    devices = model.layer_devices
    angles = [
        tuple(a[0] for a in rotary(model, p.to(model.device).long()[:, None]))
        for p in (cache.positions, cache.reduced_positions)
    ]
    keys: list[Tensor] = []
    kinds = [(key.shape, devices[layer], layer >= cache.merge_layer) for layer, key in enumerate(cache.keys)]
    for layers in group_layers(kinds, [key.nbytes for key in cache.keys], _ROTATED_AT_ONCE_BYTES):
        device = devices[layers.start]
        angles = moved(angles, device)
        together = torch.stack([cache.keys[layer].to(device, model.dtype) for layer in layers])
        keys += rotate(together, angles[layers.start >= cache.merge_layer]).unbind()
    values = tuple(v.to(device, model.dtype) for v, device in zip(cache.values, devices, strict=True))
    next_positions = (cache.next_position, cache.reduced_next_position)
    bias = moved(key_bias(cache.multiplicity), devices[-1])
    return ReadyVideo(tuple(keys), values, cache.merge_layer, next_positions, len(cache.positions), bias)
