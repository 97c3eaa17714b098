"""Vision attention over many frames of equal size in one call.

The Qwen vision towers pack all frames into one sequence in which each frame (or window) attends to itself only. Under
SDPA transformers loops over them in Python, one kernel a frame and layer, and asks the GPU for their lengths in every
layer. Here segments of equal length become a batch: one kernel a layer and length.

transformers' AttentionInterface cannot say this: a registered function gets one segment a call, unless its name holds
"flash", and then loading asks for a flash-attention package. So the module is replaced, on the loaded model only.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FrameAttention(nn.Module):
    """Takes the place of one block's `attn`; keeps its projections.

    Args:
        attention: of Qwen2-VL, Qwen2.5-VL or Qwen3-VL: `qkv` and `proj` linear, `num_heads`, `scaling`.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.scaling = attention.num_heads, attention.scaling

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Tensor:
        """Attention within segments; the argument names are those the block uses.

        Args:
            hidden_states: [N, C], segments behind one another.
            cu_seqlens: int32 [segments + 1], where segments begin and end; best on the CPU, where reading it is free.
            position_embeddings: cosines and sines [N, D].
        """
        qkv = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1))
        cos, sin = (angle.float() for angle in position_embeddings)
        query, key = _rotate(qkv[:, :2], cos, sin).unbind(1)
        value = qkv[:, 2]
        return self.proj(attend_segments(query, key, value, cu_seqlens, self.scaling).flatten(1))


def attend_segments(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float) -> Tensor:
    """Attention, not causal, within the segments of a packed sequence.

    Args:
        query, key, value: [N, heads, D].
        bounds: int [segments + 1], as `cu_seqlens` above.
        scaling: factor on the logits.

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
    """Attention within each of a batch of segments [segments, size, heads, D], same shape out."""
    out = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scaling
    )
    return out.transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [N, 2, heads, D] by [N, D], half-split layout, in float32: bit for bit transformers' own.

    Half by half straight into the result, because whole float32 copies of queries and keys would be the tower's largest
    memory traffic. Inference only: `out=` knows no gradients.
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
