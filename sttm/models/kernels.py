"""Element-wise steps of the vision towers on a GPU, in Triton: each reads and writes its tensors once.

They round where plain torch rounds (`frame_attention`, `quick_gelu`), which stays the definition: in 16 bits the bytes
are the same. There a step is two to six kernels, those of mixed dtypes at a fifth of the memory's speed: 92 of the
223 ms of Qwen2-VL's tower on an H200.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sttm.gpu import on_its_gpu

_ROWS = 32  # of one program: a token's heads
_ELEMENTS = 2048


@on_its_gpu
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split layout, in float32.

    Args:
        x: [N, 2, heads, D], queries and keys; may be a slice of [N, 3, heads, D].
        cos, sin: float32 [N, D].

    Returns:
        [N, 2, heads, D], contiguous.
    """
    N, two, heads, D = x.shape
    x = x if x.stride()[1:] == (heads * D, D, 1) else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rotate_kernel[(N, triton.cdiv(two * heads, _ROWS))](
        x,
        cos.contiguous(),
        sin.contiguous(),
        out,
        x.stride(0),
        two * heads,
        D // 2,
        ROWS=_ROWS,
        HALF=triton.next_power_of_2(D // 2),
        enable_fp_fusion=False,  # a fused multiply-add rounds once where torch rounds twice
    )
    return out


@on_its_gpu
def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) of any shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    programs = triton.cdiv(x.numel(), _ELEMENTS)
    _quick_gelu_kernel[(programs,)](x, out, x.numel(), ELEMENTS=_ELEMENTS, enable_fp_fusion=False)
    return out


@triton.jit
def _rotate_kernel(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    stride: int,
    heads: int,
    half: int,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """One program: up to ROWS heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    head, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (j < half)
    place = head * (2 * half) + j
    low = tl.load(x + token * stride + place, inside, 0.0).to(tl.float32)
    high = tl.load(x + token * stride + place + half, inside, 0.0).to(tl.float32)
    angle = token * (2 * half) + j
    cos_low, cos_high = tl.load(cos + angle, j < half, 0.0), tl.load(cos + angle + half, j < half, 0.0)
    sin_low, sin_high = tl.load(sin + angle, j < half, 0.0), tl.load(sin + angle + half, j < half, 0.0)
    to = out + token * (heads * 2 * half) + place
    tl.store(to, (low * cos_low - high * sin_low).to(out.dtype.element_ty), inside)
    tl.store(to + half, (high * cos_high + low * sin_high).to(out.dtype.element_ty), inside)


@triton.jit
def _quick_gelu_kernel(x: tl.tensor, out: tl.tensor, numel: int, ELEMENTS: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    number = tl.load(x + at, at < numel, 0.0)
    scaled = (number.to(tl.float32) * 1.702).to(number.dtype).to(tl.float32)
    gate = tl.div_rn(1.0, 1.0 + libdevice.exp(-scaled)).to(number.dtype).to(tl.float32)
    tl.store(out + at, (number.to(tl.float32) * gate).to(number.dtype), at < numel)
