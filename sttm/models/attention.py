"""Attention of many questions over one video: the shared keys are read once, not copied a question.

Attention over two sets of keys is the two partial results, weighted by their sums of exponentials (the log-sum-exp
trick of FlashAttention, arXiv 2205.14135). So the video's part is one product for all rows, and only each row's own
tokens take memory of their own.

transformers' AttentionInterface carries it: `register()` makes `ATTENTION` a name to load a language model with. A
layer that is called with `video=(keys, values)` attends to them too; without it, it is plain SDPA. `key_bias` makes
attention proportional to what a merged token stands for (ToMe, arXiv 2210.09461, section 3).

Shapes: B rows, h key heads, g query heads a key head, Q new tokens, S video tokens, P own tokens so far, D head size.
"""

from typing import Any

import torch
from torch import Tensor

ATTENTION = "sttm"
_SCORES_AT_ONCE = 1 << 26  # float32 scores in memory at one time, 256 MB


def register() -> None:
    """Teach transformers the name `ATTENTION`. Masks are made as for SDPA."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    video: tuple[Tensor, Tensor] | None = None,
    key_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a decoder layer calls: query [B, h*g, Q, D], key and value [B, h, P, D]; out [B, Q, h*g, D]."""
    if video is not None:
        out = attend(query, video, (key, value), attention_mask, scaling, key_bias)
        return out.transpose(1, 2).contiguous(), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    size = query.shape[-1]
    if key_bias is not None:
        query, key, value = with_bias(query, key, value, key_bias[: key.shape[2]] / scaling)
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return out[..., :size], None


def with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [..., tokens, D + 8]: their products are those of the inputs plus the key's `bias` [P].

    A bias given as a mask would keep SDPA from its fast kernels; extra channels do not. Two of them carry it, so that
    half precision loses nothing; eight, because the kernels want sizes divisible by eight.
    """
    coarse = bias.to(key.dtype)
    fine = (bias - coarse.float()).to(key.dtype)
    channels = torch.stack([coarse, fine], dim=-1).expand(*key.shape[:-1], 2)
    one = query.new_ones(*query.shape[:-1], 2)
    pad = torch.nn.functional.pad
    return pad(torch.cat([query, one], -1), (0, 6)), pad(torch.cat([key, channels], -1), (0, 6)), pad(value, (0, 8))


def attend(
    query: Tensor,
    video: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scaling: float,
    video_bias: Tensor | None = None,
) -> Tensor:
    """Attention of queries over the video's tokens and each row's own, [B, h*g, Q, D].

    Args:
        query: [B, h*g, Q, D], rotated.
        video: keys and values [h, S, D], seen by every query.
        own: keys and values [B, h, P, D] of each row's tokens, the new ones last.
        mask: bool, broadcastable to [B, 1, Q, P], who may see which own token; None: all of them. Every query must
            see at least one token of either kind.
        scaling: factor of the scores.
        video_bias: float32 [S], added to the scaled scores of the video's keys.
    """
    B, heads, Q, D = query.shape
    h = video[0].shape[0]
    grouped = query.view(B, h, heads // h, Q, D)
    shared_out, shared_lse = _over_video(grouped, video, scaling, video_bias)
    own_out, own_lse = _over_own(grouped, own, mask, scaling)
    share = torch.sigmoid(shared_lse - own_lse)[..., None]
    out = own_out + share * (shared_out - own_out)
    return out.view(B, heads, Q, D).to(query.dtype)


def _over_video(
    query: Tensor, video: tuple[Tensor, Tensor], scaling: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """float32 results [B, h, g, Q, D] and log-sum-exp [B, h, g, Q] over keys that all rows share."""
    keys, values = video
    B, h, g, Q, D = query.shape
    rows = query.transpose(0, 1).reshape(h, B * g * Q, D)
    step = max(1, _SCORES_AT_ONCE // max(1, h * keys.shape[1]))
    added = query.new_zeros((), dtype=torch.float32) if bias is None else bias
    parts = [_partial(_product(part, keys.mT) * scaling + added, values) for part in rows.split(step, dim=1)]
    out = torch.cat([part[0] for part in parts], dim=1).view(h, B, g, Q, D).transpose(0, 1)
    lse = torch.cat([part[1] for part in parts], dim=1).view(h, B, g, Q).transpose(0, 1)
    return out, lse


def _over_own(query: Tensor, own: tuple[Tensor, Tensor], mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """The same over each row's own keys; a query that sees none of them gets a log-sum-exp of -inf."""
    keys, values = own
    B, h, g, Q, D = query.shape
    rows = query.reshape(B * h, g * Q, D)
    scores = _product(rows, keys.flatten(0, 1).mT).view(B, h, g, Q, -1) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    out, lse = _partial(scores.view(B * h, g * Q, -1), values.flatten(0, 1))
    return out.view(B, h, g, Q, D), lse.view(B, h, g, Q)


def _partial(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax-weighted values [n, q, D] and log-sum-exp [n, q], both float32, of scores [n, q, k]."""
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp_min(torch.finfo(lse.dtype).min)[..., None]).exp()
    return _product(weights.to(values.dtype), values), lse


def _product(a: Tensor, b: Tensor) -> Tensor:
    """float32 product of two batches of matrices; half precision is only ever an input."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
