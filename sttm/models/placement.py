"""Which GPU each part of a model lies on, for models that are larger than one GPU.

    first: vision tower, embeddings, layers 0..a  |  next: layers a+1..b  |  last: layers b+1.., norm, output head

The parts never move. `sttm.engine` runs the layers one after the other and moves the hidden states between GPUs.
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
    """The first `count` GPUs that this process sees, or the CPU if it sees none.

    Raises:
        ModelError: `count` is below 1, or the process sees some GPUs but fewer than `count`.
    """
    there = torch.cuda.device_count()
    if count < 1:
        raise ModelError(f"gpus_per_model is {count}; set it to at least 1")
    if there and count > there:
        raise ModelError(f"gpus_per_model is {count}, but this process sees {there} GPU(s); lower it or add GPUs")
    return tuple(torch.device("cuda", i) for i in range(count)) if there else (torch.device("cpu"),)


def is_gpu_lost(error: BaseException) -> bool:
    """Whether all later GPU calls of this process fail too, for example after a failed assertion in a kernel."""
    return isinstance(error, torch.AcceleratorError) and "out of memory" not in str(error)


def as_devices(devices: Devices) -> tuple[torch.device, ...]:
    """Convert one device or several devices into a tuple."""
    if isinstance(devices, str | torch.device):
        return (torch.device(devices),)
    return tuple(devices)


def spread(
    layer_bytes: Sequence[int], devices: Sequence[torch.device], first_bytes: int = 0, last_bytes: int = 0
) -> tuple[torch.device, ...]:
    """Assign layers to devices in contiguous blocks, so that the fullest device holds as few bytes as possible.

    Args:
        layer_bytes: size of the weights of each layer.
        devices: at least one device; each gets at least one layer, in this order.
        first_bytes: size of what lies on the first device beside layers.
        last_bytes: size of what lies on the last device beside layers.

    Returns:
        The device of each layer.

    Raises:
        ModelError: there are more devices than layers.
    """
    layers, last = len(layer_bytes), len(devices) - 1
    if last >= layers:
        raise ModelError(f"{last + 1} GPUs for a model of {layers} layers; set gpus_per_model to {layers} or less")

    @cache
    def best(device: int, begin: int) -> tuple[int, tuple[int, ...]]:
        """Assign the layers from `begin` on to the devices from `device` on.

        Returns the bytes on the fullest of these devices, and the layer at which each block ends.
        """
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
    """Choose the device of each decoder layer. Embeddings go to the first device, norm and output head to the last.

    Args:
        text: decoder with `embed_tokens`, `layers` and `norm`, on any device, including `meta`.
        head: the output head if it has weights of its own; None if it is tied to the embeddings and stays with them.
        devices: at least one device.
        beside_bytes: size of what else goes to the first device.
        layers: the layers to place; None takes the layers of `text`.

    Raises:
        ModelError: there are more devices than layers.
    """
    first, last = _bytes(text.embed_tokens) + beside_bytes, _bytes(text.norm) + (_bytes(head) if head else 0)
    return spread([_bytes(layer) for layer in layers or text.layers], devices, first, last)


def place_model_layers(model: Any, devices: Sequence[torch.device], repeats: int = 1) -> tuple[torch.device, ...]:
    """Choose the device of each decoder layer of a multimodal model, whose vision tower goes to the first device.

    Args:
        model: a model of transformers, on any device, including `meta`.
        devices: at least one device.
        repeats: how often the decoder layers will be repeated; the result has an entry for each repetition.

    Raises:
        ModelError: there are more devices than layers.
    """
    text = model.model.language_model
    head = None if _is_tied(model) else model.lm_head
    beside = _bytes(model) - _bytes(text) - (_bytes(head) if head else 0)
    return place_layers(text, head, devices, beside, list(text.layers) * repeats)


def device_map(model: Any, devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """Choose the device of every part of a multimodal model, in the form of a `device_map` of transformers.

    Args:
        model: a model of transformers, on any device, including `meta`.
        devices: at least one device.

    Returns:
        The device by name of a module, or of a parameter or buffer outside of these modules; every tensor is covered.

    Raises:
        ModelError: there are more devices than layers.
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
    """Names of a module's direct children, parameters and buffers, except the one called `but`."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [prefix + name for name, _ in [*module.named_children(), *tensors] if name != but]


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
