"""Rounding of rows to FP8 as a Triton kernel, which reads its input from memory once and writes only the codes.

The element-wise step before a linear module can be part of it. The plain torch code in `sttm.models.fp8` defines the
results, and the kernel rounds to the same codes. A program handles one row in two passes: the first finds the row's
largest number, the second finds the row in the cache and rounds it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sttm.gpu import on_its_gpu

_CHANNELS = 2048  # channels that a program handles at once
_LARGEST = tl.constexpr(448.0)
_FAINTEST = tl.constexpr(2.0**-100)
_AS_IT_IS, _QUICK_GELU, _SILU_PRODUCT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


def quantise_rows(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Round rows to FP8.

    Args:
        x: [M, K], rows.
        channels: K', the width of the result; the channels beyond K become zero.

    Returns:
        Codes float8_e4m3fn [M, K'], and scales float32 [M, 1].
    """
    return _quantised(x, x, channels, _AS_IT_IS)


def quantised_quick_gelu(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Round rows of x * sigmoid(1.702 x) to FP8.

    Args:
        x: [M, K], rows.
        channels: K', the width of the result; the channels beyond K become zero.

    Returns:
        Codes float8_e4m3fn [M, K'], and scales float32 [M, 1].
    """
    return _quantised(x, x, channels, _QUICK_GELU)


def quantised_silu_product(gate: Tensor, up: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Round rows of silu(gate) * up to FP8.

    Args:
        gate: [M, K], rows.
        up: [M, K] in the dtype of `gate`.
        channels: K', the width of the result; the channels beyond K become zero.

    Returns:
        Codes float8_e4m3fn [M, K'], and scales float32 [M, 1].
    """
    return _quantised(gate, up, channels, _SILU_PRODUCT)


@on_its_gpu
def _quantised(x: Tensor, up: Tensor, channels: int, step: Any) -> tuple[Tensor, Tensor]:
    x, up = (rows if rows.stride(1) == 1 else rows.contiguous() for rows in (x, up))
    codes = torch.empty(len(x), channels, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    if len(x):
        _quantise_kernel[(len(x),)](
            *(x, up, codes, scales, _row_stride(x), _row_stride(up), x.shape[1], channels),
            STEP=step.value,
            CHANNELS=_CHANNELS,
            enable_fp_fusion=False,  # a fused multiply-add rounds once where torch rounds twice
            num_warps=8,
        )
    return codes, scales


def _row_stride(x: Tensor) -> int:
    """Elements from one row to the next. A single row may have any stride, and each would compile another variant."""
    return x.stride(0) if len(x) > 1 else x.shape[1]


@triton.jit
def _numbers(x: tl.tensor, up: tl.tensor, at: tl.tensor, K: int, STEP: tl.constexpr) -> tl.tensor:
    """The float32 numbers to round, after the step before them, which rounds where plain torch does; zeros from K."""
    given = tl.load(x + at, at < K, 0.0)
    wide = given.to(tl.float32)
    if STEP == _QUICK_GELU:
        scaled = (wide * 1.702).to(given.dtype).to(tl.float32)
        share = tl.div_rn(1.0, 1.0 + libdevice.exp(-scaled)).to(given.dtype).to(tl.float32)
        wide = (wide * share).to(given.dtype).to(tl.float32)
    if STEP == _SILU_PRODUCT:
        silu = tl.div_rn(wide, 1.0 + libdevice.exp(-wide)).to(given.dtype).to(tl.float32)
        wide = (silu * tl.load(up + at, at < K, 0.0).to(tl.float32)).to(given.dtype).to(tl.float32)
    return wide


@triton.jit
def _quantise_kernel(
    x: tl.tensor,
    up: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    stride: tl.int64,
    up_stride: tl.int64,
    K: int,
    channels: int,
    STEP: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    x += row * stride
    up += row * up_stride
    largest = tl.full((CHANNELS,), _FAINTEST, tl.float32)
    for start in range(0, K, CHANNELS):
        at = start + tl.arange(0, CHANNELS)
        largest = tl.maximum(largest, tl.abs(_numbers(x, up, at, K, STEP)))
    top = tl.max(largest, axis=0)
    tl.store(scales + row, tl.div_rn(top, _LARGEST))
    factor = tl.div_rn(_LARGEST, top)
    for start in range(0, channels, CHANNELS):
        at = start + tl.arange(0, CHANNELS)
        number = _numbers(x, up, at, K, STEP) * factor
        tl.store(codes + row * channels + at, number.to(tl.float8e4nv), at < channels)
