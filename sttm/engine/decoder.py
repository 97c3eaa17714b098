"""One walk through a decoder layer, seen from outside: rotary angles, masks, and what a layer asks of a cache.

Nothing of transformers is patched or subclassed: a layer is called with its mask, its rotary pair and an object that
has `update`. Shapes: B batch, Q query tokens, A position axes, D head size.
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
    """All that a decoder layer asks of a cache."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take rotated keys and values [B, heads, Q, D] of the new tokens; give back all to attend to."""


def rotary(model: LanguageModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, Q, D] for position ids [A, B, Q], on their device, in the model's dtype.

    One axis is plain RoPE, three are M-RoPE.
    """
    ids = positions.to(model.device)  # the frequencies are there, and not every family brings them elsewhere
    angles = model.text.rotary_emb(model.text.embed_tokens.weight, ids if len(ids) == 3 else ids[0])
    return moved(angles, positions.device)


def rotate(keys: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate keys [..., Q, D] stored before RoPE; the same operations in the same order as the layer's own.

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
    """Hidden states [B, Q, C] through decoder layer number `layer`.

    With `video`, rotated keys and values [heads, S, D], all rows also see these S tokens. `bias`, float32, is added to
    the attention logits of the video's keys [S], or without `video` of all keys. See `sttm.models.attention`.
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


@functools.cache
def _cache_argument(kind: type[torch.nn.Module]) -> str:
    """What a decoder layer calls its cache: `cache` in newer transformers, `past_key_values` in older ones."""
    names = inspect.signature(kind.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def key_bias(multiplicity: Tensor) -> Tensor | None:
    """What makes keys count as many times as int [tokens] says: float32 [tokens], None where all count once."""
    return multiplicity.float().log() if bool((multiplicity != 1).any()) else None


def moved(value: Any, device: torch.device) -> Any:
    """All tensors of a value on a device, also in tuples, lists and dicts; those there already stay as they are."""
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


@contextmanager
def unrotated_keys(model: LanguageModel, layer: int) -> Iterator[list[Tensor]]:
    """Collect layer `layer`'s keys before RoPE, [B, Q, heads * D] or [B, Q, heads, D], one entry a call."""
    attention = model.text.layers[layer].self_attn
    source = getattr(attention, "k_norm", None) or attention.k_proj
    seen: list[Tensor] = []
    handle = source.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def causal_mask(past: int, pad: Tensor, queries: int) -> Tensor:
    """Bool [B, 1, Q, past + Q]: who may see whom when `queries` new tokens follow `past` cached ones.

    Args:
        past: cached tokens, seen by every query.
        pad: int64 [B], how many of each row's first new tokens are padding; no real token sees them.
        queries: Q, new tokens a row.
    """
    i = torch.arange(queries, device=pad.device)
    new = (i[None, :] <= i[:, None])[None] & (i[None, None, :] >= pad[:, None, None])
    return torch.cat([new.new_ones(len(pad), queries, past), new], dim=-1)[:, None]
