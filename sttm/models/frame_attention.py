"""Attention of the Qwen vision towers over many frames in one call.

These towers pack all frames into one sequence, in which each frame (or window) attends only to itself. With SDPA,
transformers loops over these segments in Python, with one kernel for each frame and layer, and in every layer it reads
their lengths from the GPU. Here segments of equal length form a batch: one kernel for each layer and length.

transformers' AttentionInterface does not allow this: a registered function gets one segment in a call, unless its name
contains "flash", and then loading requires a flash-attention package. So the attention module of the loaded model is
replaced instead.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FrameAttention(nn.Module):
    """Replaces the attention module `attn` of one block of a vision tower and keeps its projections.

    Args:
        attention: the attention module of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL vision block, with linear modules `qkv`
            and `proj`, and with `num_heads` and `scaling`.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.scaling = attention.num_heads, attention.scaling

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Tensor:
        """Attention within segments. The names of the arguments are those that the block of transformers uses.

        Args:
            hidden_states: [N, C], all segments one after the other.
            cu_seqlens: int32 [segments + 1], where segments begin and end. It should lie on the CPU, because reading
                it from a GPU would wait for that GPU.
            position_embeddings: cosines and sines of the rotary embedding, [N, D] each.
            kwargs: further arguments of the block, which are not used.

        Returns:
            [N, C].
        """
        qkv = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1))
        cos, sin = (angle.float() for angle in position_embeddings)
        query, key = _rotate(qkv[:, :2], cos, sin).unbind(1)
        value = qkv[:, 2]
        return self.proj(attend_segments(query, key, value, cu_seqlens, self.scaling).flatten(1))


def attend_segments(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float) -> Tensor:
    """Attention, not causal, within the segments of a packed sequence.

    Args:
        query: [N, heads, D].
        key: [N, heads, D].
        value: [N, heads, D].
        bounds: int [segments + 1], where segments begin and end.
        scaling: factor of the scores.

    Returns:
        [N, heads, D].
    """
    starts, lengths = bounds[:-1].cpu(), bounds.diff().cpu()
    sizes = lengths.unique().tolist()
    if len(sizes) == 1:
        query, key, value = (x.unflatten(0, (-1, sizes[0])) for x in (query, key, value))
        return _attend(query, key, value, scaling).flatten(0, 1)
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    for size in sizes:
        first = starts[lengths == size].to(query.device, non_blocking=True)
        places = first[:, None] + torch.arange(size, device=query.device)
        out[places] = _attend(query[places], key[places], value[places], scaling)
    return out


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention within each segment of a batch: [segments, size, heads, D] in, the same shape out."""
    out = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scaling
    )
    return out.transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of queries and keys [N, 2, heads, D] by angles [N, D], equal bit for bit to transformers' own.

    The layout is half-split and the arithmetic float32. Each half is written straight into the result, because whole
    float32 copies of queries and keys would be the largest memory traffic of the tower. This works for inference only,
    because `out=` has no gradients.
    """
    if x.is_cuda:
        from sttm.models import triton_kernels

        return triton_kernels.rotate(x, cos, sin)
    cos, sin, half = cos[:, None, None], sin[:, None, None], x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.sub(low * cos[..., :half], high * sin[..., :half], out=out[..., :half])
    torch.add(high * cos[..., half:], low * sin[..., half:], out=out[..., half:])
    return out
