"""Calls one decoder layer of transformers with rotary angles, a mask and a cache of our own.

Nothing of transformers is patched or subclassed.

Shapes: B batch, Q query tokens, A position axes, D head size, C hidden size.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from sttm.models.language_model import LanguageModel


class LayerCache(Protocol):
    """The one method of a cache that a decoder layer calls."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store rotated keys and values [B, heads, Q, D] of new tokens. Returns all keys and values to attend to."""


def rotary(model: LanguageModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, Q, D] for position ids [A, B, Q], on their device, in the model's dtype.

    One axis is plain RoPE, three are M-RoPE.
    """
    ids = positions.to(
        model.device
    )  # The frequencies are there, and not every family moves them to the positions' device.
    angles = model.text.rotary_emb(model.text.embed_tokens.weight, ids if len(ids) == 3 else ids[0])
    return moved(angles, positions.device)


def rotate(keys: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate keys [..., Q, D] that were stored before RoPE, with the same operations in the same order as the layer.

    RoFormer (arXiv 2104.09864), half-split layout, as in every supported family.
    """
    cos, sin = angles
    half = keys.shape[-1] // 2
    turned = torch.cat((-keys[..., half:], keys[..., :half]), dim=-1)
    return keys * cos + turned * sin


def run_layer(
    model: LanguageModel,
    layer: int,
    hidden: Tensor,
    mask: Tensor | None,
    angles: tuple[Tensor, Tensor],
    cache: LayerCache,
    video: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Run one decoder layer. Returns its hidden states [B, Q, C].

    Args:
        model: the language model.
        layer: number of the layer.
        hidden: [B, Q, C], the hidden states before the layer.
        mask: attention mask over the tokens of `cache`, or None for plain causal attention.
        angles: cosines and sines [B, Q, D] of the tokens' positions.
        cache: takes the keys and values of the tokens.
        video: rotated keys and values [heads, S, D] of S further tokens that all rows see. None adds no tokens.
        bias: float32, added to the attention logits of the video's keys [S], or of all keys where there is no `video`.
    """
    more = {"video": video, "key_bias": bias}
    module = model.text.layers[layer]
    out = module(
        hidden,
        attention_mask=mask,
        position_embeddings=angles,
        position_ids=None,
        use_cache=True,
        **{_cache_argument(type(module)): cache},  # type: ignore[arg-type]
        **{name: value for name, value in more.items() if value is not None},
    )
    return out[0] if isinstance(out, tuple) else out


def keys_and_values(model: LanguageModel, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Keys before RoPE (after k_norm if the model has one) and values, [B, heads, Q, D] each, of one decoder layer.

    Attention and MLP do not run, so this costs a fraction of the layer. A KV cache needs no more of the last layer.

    Args:
        model: the language model.
        layer: number of the layer.
        hidden: [B, Q, C], the hidden states before the layer.
    """
    module = model.text.layers[layer]
    attention = module.self_attn
    normed = module.input_layernorm(hidden)
    keys, values = (
        projection(normed).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.k_proj, attention.v_proj)
    )
    if norm := getattr(attention, "k_norm", None):
        keys = norm(keys)
    return keys.transpose(1, 2), values.transpose(1, 2)


@functools.cache
def _cache_argument(kind: type[torch.nn.Module]) -> str:
    """The name of a decoder layer's cache argument: `cache` in newer transformers, `past_key_values` in older ones."""
    names = inspect.signature(kind.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def key_bias(multiplicity: Tensor) -> Tensor | None:
    """Bias on attention logits that lets each key count `multiplicity` times, given as int [tokens].

    Returns float32 [tokens], or None where every key counts once.
    """
    return multiplicity.float().log() if bool((multiplicity != 1).any()) else None


def moved(value: Any, device: torch.device) -> Any:
    """The value with all its tensors on a device. Tensors are also found inside tuples, lists and dicts."""
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


@contextmanager
def unrotated_keys(model: LanguageModel, layer: int) -> Iterator[list[Tensor]]:
    """Collect the keys of a layer before RoPE: one entry for each call, [B, Q, heads * D] or [B, Q, heads, D]."""
    attention = model.text.layers[layer].self_attn
    source = getattr(attention, "k_norm", None) or attention.k_proj
    seen: list[Tensor] = []
    handle = source.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def causal_mask(past: int, pad: Tensor, queries: int) -> Tensor:
    """Bool [B, 1, Q, past + Q]: which tokens each new token may see, where Q new tokens follow `past` cached ones.

    Args:
        past: number of cached tokens. Every new token sees them.
        pad: int64 [B], how many of the first new tokens of each row are padding. No real token sees them.
        queries: Q, number of new tokens a row.
    """
    i = torch.arange(queries, device=pad.device)
    new = (i[None, :] <= i[:, None])[None] & (i[None, None, :] >= pad[:, None, None])
    return torch.cat([new.new_ones(len(pad), queries, past), new], dim=-1)[:, None]
