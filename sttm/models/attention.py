"""Attention of many questions over one video: the video's keys are read once for all questions and never copied.

Attention over two sets of keys equals the results for each set, weighted by their sums of exponentials (the
log-sum-exp trick of FlashAttention, arXiv 2205.14135). So the video's part is one matrix product for all rows of the
batch, and only each row's own tokens take extra memory. On a GPU in half precision, torch's kernels that return the
log-sum-exp compute both parts. The plain matrix products in this file define the result and run everywhere else.

`register()` adds this attention to transformers' AttentionInterface under the name `ATTENTION`, with which a language
model is loaded. A decoder layer that is called with `video=(keys, values)` attends to the video too; without `video` it
computes plain SDPA. `key_bias` makes attention proportional to the number of cells that a merged token stands for
(ToMe, arXiv 2210.09461, section 3).

Shapes: B rows, h key heads, g query heads for each key head, Q new tokens, S video tokens, P own tokens so far, D head
size.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

ATTENTION = "sttm"
_SCORES_AT_ONCE = 1 << 26  # float32 scores in memory at one time, 256 MB
_WIDEST = 248  # flash attention takes heads of up to 256 channels, and the bias adds 8
_HIDDEN = -3e4  # added to hidden scores; finite, because a kernel may return NaN for a query that sees no key


def register() -> None:
    """Register the attention with transformers under the name `ATTENTION`, with the masks that SDPA uses."""
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
    """The function that a decoder layer calls.

    Args:
        module: the attention module of the layer.
        query: [B, h*g, Q, D].
        key: [B, h, P, D].
        value: [B, h, P, D].
        attention_mask: see `attend`; without `video`, a mask for SDPA.
        scaling: factor of the scores.
        video: keys and values of the video [h, S, D]; None for plain attention.
        key_bias: float32, added to the scaled scores of the video's keys [S], or without `video` of the keys [P].
        kwargs: passed on to SDPA.

    Returns:
        The result [B, Q, h*g, D], and None in place of attention weights.
    """
    if video is not None:
        return attend(query, video, (key, value), attention_mask, scaling, key_bias).transpose(1, 2), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    size = query.shape[-1]
    if key_bias is not None:
        query, key, value = with_bias(query, key, value, key_bias[: key.shape[2]] / scaling)
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return out[..., :size], None


def with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Extend queries, keys and values by 8 channels, so that the products of queries and keys include `bias` [P].

    A bias in the form of a mask would keep SDPA from using its fast kernels. Two of the channels hold the bias, as a
    coarse and a fine part, so that half precision does not round it. The others are zero, because the kernels need
    sizes divisible by eight.
    """
    coarse = bias.to(key.dtype)
    fine = (bias - coarse.float()).to(key.dtype)
    channels = torch.stack([coarse, fine], dim=-1).expand(*key.shape[:-1], 2)
    one = query.new_ones(*query.shape[:-1], 2)
    pad = torch.nn.functional.pad
    return pad(torch.cat([query, one], -1), (0, 6)), pad(torch.cat([key, channels], -1), (0, 6)), pad(value, (0, 8))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a bool mask into one that is added to scores. Done once, it saves `attend` this work in every layer."""
    return mask.logical_not().to(dtype).mul_(_HIDDEN)


def attend(
    query: Tensor,
    video: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scaling: float,
    video_bias: Tensor | None = None,
) -> Tensor:
    """Attention of queries over the video's tokens and over each row's own tokens.

    Args:
        query: [B, h*g, Q, D], after the rotary embedding.
        video: keys and values [h, S, D], which every query sees.
        own: keys and values [B, h, P, D] of each row's own tokens, the new tokens last.
        mask: broadcastable to [B, 1, Q, P]. Either bool, True where a query sees an own token, or the result of
            `additive` in the query's dtype. None lets every query see all own tokens. Every query must see at least
            one token of the video or of its own.
        scaling: factor of the scores.
        video_bias: float32 [S], added to the scaled scores of the video's keys.

    Returns:
        [B, h*g, Q, D], a view of memory laid out as [B, Q, h*g, D].
    """
    B, heads, Q, D = query.shape
    groups = (video[0].shape[0], heads // video[0].shape[0])
    grouped = query.unflatten(1, groups)
    if _has_kernels(query, own[0]):
        mask = additive(mask, query.dtype) if mask is not None and mask.dtype == torch.bool else mask
        shared_out, shared_lse = _video_by_kernel(grouped, video, scaling, video_bias)
        own_out, own_lse = _own_by_kernel(grouped, own, mask, scaling)
    else:
        shared_out, shared_lse = _over_video(grouped, video, scaling, video_bias)
        own_out, own_lse = _over_own(grouped, own, mask, scaling)
    share = torch.sigmoid(shared_lse - own_lse)[..., None]
    out = query.new_empty(B, Q, heads, D)
    torch.addcmul(own_out, share, shared_out - own_out, out=out.unflatten(2, groups).permute(0, 2, 3, 1, 4))
    return out.transpose(1, 2)


def _has_kernels(query: Tensor, keys: Tensor) -> bool:
    """Whether torch's kernels can be used: they need half precision on a GPU, and aligned channels and mask rows."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    is_aligned = query.shape[-1] % 8 == 0 and keys.shape[2] % 16 == 0
    return is_aligned and query.shape[-1] <= _WIDEST and _is_ampere(query.device)


@cache
def _is_ampere(device: torch.device) -> bool:
    """Whether the GPU is of the Ampere generation or newer, which flash attention needs."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _video_by_kernel(
    query: Tensor, video: tuple[Tensor, Tensor], scaling: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention over the video by flash attention, with all rows of the batch as one sequence of queries.

    Returns:
        Results [B, h, g, Q, D] in the query's dtype, and their log-sum-exp [B, h, g, Q].
    """
    B, h, g, Q, D = query.shape
    inputs = query.transpose(0, 1).reshape(1, h, B * g * Q, D), video[0][None], video[1][None]
    if bias is not None:
        inputs = with_bias(*inputs, bias / scaling)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*inputs, scale=scaling)
    out, lse = out[0, ..., :D].unflatten(1, (B, g, Q)), lse[0].unflatten(1, (B, g, Q))
    return out.transpose(0, 1), lse.transpose(0, 1)


def _own_by_kernel(
    query: Tensor, own: tuple[Tensor, Tensor], mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention over the rows' own keys by a kernel of torch. Key heads form a batch, so no key is copied.

    Returns:
        Results [B, h, g, Q, D] in the query's dtype, and their log-sum-exp [B, h, g, Q].
    """
    B, h, g, Q, _ = query.shape
    keys, values = (tensor.flatten(0, 1)[:, None].expand(-1, g, -1, -1) for tensor in own)
    if mask is not None:
        mask = mask.expand(B, h, Q, -1).flatten(0, 1)[:, None].expand(-1, g, -1, -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query.flatten(0, 1), keys, values, mask, True, scale=scaling
    )
    return out.unflatten(0, (B, h)), lse[..., :Q].unflatten(0, (B, h))  # the kernel pads queries to whole blocks


def _over_video(
    query: Tensor, video: tuple[Tensor, Tensor], scaling: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention over the video's keys, which all rows share: float32 results [B, h, g, Q, D] and log-sum-exp."""
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
    """Attention over each row's own keys: float32 results [B, h, g, Q, D] and log-sum-exp [B, h, g, Q].

    A query that sees none of these keys gets a log-sum-exp of -inf.
    """
    keys, values = own
    B, h, g, Q, D = query.shape
    rows = query.reshape(B * h, g * Q, D)
    scores = _product(rows, keys.flatten(0, 1).mT).view(B, h, g, Q, -1) * scaling
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    elif mask is not None:
        scores = scores + mask[:, None]
    out, lse = _partial(scores.view(B * h, g * Q, -1), values.flatten(0, 1))
    return out.view(B, h, g, Q, D), lse.view(B, h, g, Q)


def _partial(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Weight values [n, k, D] by the softmax of scores [n, q, k].

    Returns:
        Weighted values [n, q, D] and log-sum-exp [n, q], both float32.
    """
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp_min(torch.finfo(lse.dtype).min)[..., None]).exp()
    return _product(weights.to(values.dtype), values), lse


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product of two batches of matrices, accumulated and returned in float32 also for half precision."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
