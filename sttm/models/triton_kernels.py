"""Element-wise steps of models as Triton kernels, each of which reads and writes its tensors once.

The plain torch code in `frame_attention` and `fused_modules` defines the results, and these kernels round at the same
places. In 16 bits the results are therefore equal byte for byte, except for `rms_norm`, whose sum has another order. In
plain torch a step takes two to eight kernels, and those with mixed dtypes run at a fifth of the memory's speed: they
took 92 of the 223 ms of Qwen2-VL's vision tower on an H200.

Triton gives an argument annotated `int` 32 bits, which cannot count the elements of the widest tensors. So the number
of elements is annotated `tl.int64`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sttm.gpu import on_its_gpu

_ROWS = 32  # heads of a token that one program handles
_ELEMENTS = 2048  # elements that one program handles


@on_its_gpu
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in half-split layout, computed in float32.

    Args:
        x: [N, 2, heads, D], queries and keys; it may be a slice of [N, 3, heads, D].
        cos: float32 [N, D], cosines of the angles.
        sin: float32 [N, D], sines of the angles.

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
    """x * sigmoid(1.702 x) for a tensor of any shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    programs = triton.cdiv(x.numel(), _ELEMENTS)
    _quick_gelu_kernel[(programs,)](x, out, x.numel(), ELEMENTS=_ELEMENTS, enable_fp_fusion=False)
    return out


@on_its_gpu
def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up for two tensors of the same shape. The result overwrites `gate` if `gate` is contiguous."""
    gate, up = gate.contiguous(), up.contiguous()
    programs = triton.cdiv(gate.numel(), _ELEMENTS)
    _silu_product_kernel[(programs,)](gate, up, gate.numel(), ELEMENTS=_ELEMENTS, enable_fp_fusion=False)
    return gate


@on_its_gpu
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight, for `x` [..., C] and `weight` [C]; the mean is over the last axis."""
    x = x.contiguous()
    out, C = torch.empty_like(x), x.shape[-1]
    rows, width = x.numel() // C, triton.next_power_of_2(C)
    height = max(1, _ELEMENTS // width)
    _rms_norm_kernel[(triton.cdiv(rows, height),)](
        x, weight, out, rows, C, epsilon, ROWS=height, WIDTH=width, num_warps=8 if width > _ELEMENTS else 4
    )
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
    """Each program handles up to ROWS heads of one token."""
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
def _quick_gelu_kernel(x: tl.tensor, out: tl.tensor, numel: tl.int64, ELEMENTS: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    number = tl.load(x + at, at < numel, 0.0)
    scaled = (number.to(tl.float32) * 1.702).to(number.dtype).to(tl.float32)
    gate = tl.div_rn(1.0, 1.0 + libdevice.exp(-scaled)).to(number.dtype).to(tl.float32)
    tl.store(out + at, (number.to(tl.float32) * gate).to(number.dtype), at < numel)


@triton.jit
def _silu_product_kernel(gate: tl.tensor, up: tl.tensor, numel: tl.int64, ELEMENTS: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    number = tl.load(gate + at, at < numel, 0.0)
    wide = number.to(tl.float32)
    silu = tl.div_rn(wide, 1.0 + libdevice.exp(-wide)).to(number.dtype).to(tl.float32)
    factor = tl.load(up + at, at < numel, 0.0).to(tl.float32)
    tl.store(gate + at, (silu * factor).to(number.dtype), at < numel)


@triton.jit(do_not_specialize=["rows"])  # one variant for any number of rows: compiling fails in a CUDA graph capture
def _rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    rows: int,
    C: int,
    epsilon: float,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Each program handles ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    at, inside = row * C + channel, (row < rows) & (channel < C)
    number = tl.load(x + at, inside, 0.0)
    wide = number.to(tl.float32)
    mean = tl.sum(wide * wide, axis=1) / C
    normed = (wide * tl.rsqrt(mean + epsilon)[:, None]).to(number.dtype).to(tl.float32)
    scale = tl.load(weight + channel, channel < C, 0.0).to(tl.float32)
    tl.store(out + at, (normed * scale).to(out.dtype.element_ty), inside)
