"""Which GPU each part of a model lives on, for models larger than one.

    first: vision tower, embeddings, layers 0..a  |  next: layers a+1..b  |  last: layers b+1.., norm, output head

Every part stays where it is put: whoever walks the layers (`sttm.engine`) takes the hidden states along.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from sttm.errors import ModelError

Devices = str | torch.device | Sequence[torch.device]


def first_gpus(count: int) -> tuple[torch.device, ...]:
    """The first `count` GPUs this process sees; the CPU where there is none.

    Raises:
        ModelError: there are fewer, or `count` is below 1.
    """
    there = torch.cuda.device_count()
    if count < 1:
        raise ModelError(f"gpus_per_model is {count}; at least 1 is needed")
    if there and count > there:
        raise ModelError(f"gpus_per_model is {count}, but this process sees {there} GPU(s); lower it or add GPUs")
    return tuple(torch.device("cuda", i) for i in range(count)) if there else (torch.device("cpu"),)


def is_gpu_lost(error: BaseException) -> bool:
    """Whether every later call of this process to its GPU fails, too, as after an assertion that failed there."""
    return isinstance(error, torch.AcceleratorError) and "out of memory" not in str(error)


def as_devices(devices: Devices) -> tuple[torch.device, ...]:
    """One device or several as a tuple."""
    if isinstance(devices, str | torch.device):
        return (torch.device(devices),)
    return tuple(devices)


def spread(
    layer_bytes: Sequence[int], devices: Sequence[torch.device], first_bytes: int = 0, last_bytes: int = 0
) -> tuple[torch.device, ...]:
    """The device of each layer: contiguous blocks in the order of `devices`, the fullest device as empty as can be.

    Args:
        layer_bytes: weights of each layer.
        devices: at least one, each gets at least one layer.
        first_bytes, last_bytes: what lies on the first and the last device beside layers.

    Raises:
        ModelError: there are more devices than layers.
    """
    layers, last = len(layer_bytes), len(devices) - 1
    if last >= layers:
        raise ModelError(f"{last + 1} GPUs for a model of {layers} layers; set gpus_per_model to {layers} or less")

    @cache
    def best(device: int, begin: int) -> tuple[int, tuple[int, ...]]:
        """Layers from `begin` on over devices from `device` on: the fullest one's load, and where each block ends."""
        beside = first_bytes * (device == 0) + last_bytes * (device == last)
        if device == last:
            return beside + sum(layer_bytes[begin:]), (layers,)
        options = []
        for end in range(begin + 1, layers - last + device + 1):
            load, ends = best(device + 1, end)
            options.append((max(load, beside + sum(layer_bytes[begin:end])), (end, *ends)))
        return min(options)

    ends = best(0, 0)[1]
    return tuple(devices[bisect_right(ends, layer)] for layer in range(layers))


def place_layers(
    text: Any,
    head: nn.Module | None,
    devices: Sequence[torch.device],
    beside_bytes: int = 0,
    layers: Sequence[nn.Module] | None = None,
) -> tuple[torch.device, ...]:
    """The device of each decoder layer, see `spread`; embeddings go to the first device, norm and head to the last.

    Args:
        text: decoder with `embed_tokens`, `layers` and `norm`, on any device, `meta` too.
        head: the output head if it has weights of its own; one tied to the embeddings stays with them.
        devices: at least one.
        beside_bytes: what else goes to the first device.
        layers: None: those of `text`.
    """
    first, last = _bytes(text.embed_tokens) + beside_bytes, _bytes(text.norm) + (_bytes(head) if head else 0)
    return spread([_bytes(layer) for layer in layers or text.layers], devices, first, last)


def place_model_layers(model: Any, devices: Sequence[torch.device], repeats: int = 1) -> tuple[torch.device, ...]:
    """The same for a multimodal model of transformers, whose vision tower goes to the first device.

    Args:
        model: on any device, `meta` too.
        devices: at least one.
        repeats: how often its layers will be repeated.
    """
    text = model.model.language_model
    head = None if _is_tied(model) else model.lm_head
    beside = _bytes(model) - _bytes(text) - (_bytes(head) if head else 0)
    return place_layers(text, head, devices, beside, list(text.layers) * repeats)


def device_map(model: Any, devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """The device of every part of a multimodal model, by name of module or lone tensor; none is left out.

    Args:
        model: of transformers, on any device, `meta` too.
        devices: at least one.
    """
    text, is_tied = model.model.language_model, _is_tied(model)
    layers = place_model_layers(model, devices)
    names = [*_parts(model, "", but="model"), *_parts(model.model, "model.", but="language_model")]
    names += _parts(text, "model.language_model.", but="layers")
    last = {"model.language_model.norm"} if is_tied else {"model.language_model.norm", "lm_head"}
    places = {name: layers[-1] if name in last else devices[0] for name in names}
    return places | {f"model.language_model.layers.{i}": device for i, device in enumerate(layers)}


def _is_tied(model: Any) -> bool:
    return model.lm_head.weight is model.model.language_model.embed_tokens.weight


def _parts(module: nn.Module, prefix: str, but: str) -> list[str]:
    """Names of a module's own children, parameters and buffers, but one."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [prefix + name for name, _ in [*module.named_children(), *tensors] if name != but]


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
