"""Puts the caches of several videos together, so that one question can be about all of them.

The result is approximate. Keys are stored before RoPE, so a cache can be moved to the positions behind another video.
But the caches were made apart, so the tokens of a video have not attended to the videos before it. Measured with the
built-in model on 383 questions about pairs of clips, against one prefill of both clips: the first token is the same for
97 % of the questions with all tokens, and for 93 % with 30 % of the tokens (a joint prefill also chooses them jointly).
`pytest -m slow -s tests/test_compose.py` measures it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sttm.engine.ready_video import ReadyVideo, ready
from sttm.kv_cache import KVCache
from sttm.models.language_model import LanguageModel


def compose(model: LanguageModel, caches: Sequence[KVCache]) -> ReadyVideo:
    """Put several videos together, in their order, as if they were shown one after the other.

    The text before each video but the first is left out, except for its last token, which in most families marks the
    start of a video.

    Args:
        model: the language model that made all caches.
        caches: at least one cache, all with the same merge layer.

    Raises:
        ValueError: the caches have different merge layers, or different models made them.
    """
    if len({(cache.merge_layer, len(cache.keys), len(cache.positions)) for cache in caches}) != 1:
        raise ValueError(f"{len(caches)} caches with different merge layers or models; index them with one recipe")
    parts: list[tuple[ReadyVideo, int]] = []
    for cache in caches:
        cut = opening_tokens(cache) if parts else 0
        moved = _moved(cache, cut, parts[-1][0].next_positions) if parts else cache
        parts.append((ready(model, moved), cut))
    layers = range(len(caches[0].keys))
    return replace(
        parts[-1][0],
        keys=tuple(torch.cat([video.keys[layer][:, cut:] for video, cut in parts], dim=1) for layer in layers),
        values=tuple(torch.cat([video.values[layer][:, cut:] for video, cut in parts], dim=1) for layer in layers),
        bias=_bias(parts),
    )


def opening_tokens(cache: KVCache) -> int:
    """How many tokens of the prefix, in every layer, stand before the one token that precedes the video."""
    return max(0, int(cache.visual[0]) - 1)


def _moved(cache: KVCache, cut: int, starts: tuple[int, int]) -> KVCache:
    """The cache, moved so that token number `cut` stands at `starts`: first below the merge layer, then from it on."""
    full = starts[0] - int(cache.positions[:, cut].max())
    reduced = starts[1] - int(cache.reduced_positions[:, cut].max())
    return replace(
        cache,
        positions=cache.positions + full,
        reduced_positions=cache.reduced_positions + reduced,
        next_position=cache.next_position + full,
        reduced_next_position=cache.reduced_next_position + reduced,
    )


def _bias(parts: Sequence[tuple[ReadyVideo, int]]) -> torch.Tensor | None:
    if all(video.bias is None for video, _ in parts):
        return None
    biases = []
    for video, cut in parts:
        last = video.keys[-1]
        bias = last.new_zeros(last.shape[1], dtype=torch.float32) if video.bias is None else video.bias
        biases.append(bias[cut:])
    return torch.cat(biases)
