"""Several videos in one question, from caches that were made apart. Approximate: no video has seen the others.

Keys are stored before RoPE, so a cache can be moved to where it would stand behind another. What cannot be had is that
its tokens attend to the videos before it. Measured with the built-in model on 383 questions about pairs of clips,
against one prefill of both: the same first token for 97 % of them with all tokens, 93 % with 30 % of the tokens (which
a joint prefill also chooses jointly); `pytest -m slow -s tests/test_compose.py`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sttm.engine.ready_video import ReadyVideo, ready
from sttm.kv_cache import KVCache
from sttm.models.language_model import LanguageModel


def compose(model: LanguageModel, caches: Sequence[KVCache]) -> ReadyVideo:
    """One video of several, in their order, as if shown one after the other.

    Of all but the first the text before the video is left out, but for one token, in most families the video's mark.

    Args:
        model: the language model that made all of them.
        caches: at least one, with the same merge layer.

    Raises:
        ValueError: the caches do not fit together.
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
    """How many tokens of the prefix stand before the video and its mark, in every layer."""
    return max(0, int(cache.visual[0]) - 1)


def _moved(cache: KVCache, cut: int, starts: tuple[int, int]) -> KVCache:
    """The cache with token `cut` at position `starts`, below and from the merge layer on."""
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
