"""Rounding of rows to FP8 as Triton kernels, which read their input from memory once and write only the codes.

The plain torch code in `sttm.models.fp8` defines the results, and the kernels round to the same codes. A program
handles one row in two passes: the first finds the row's largest number, the second finds the row in the cache and
rounds it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sttm.gpu import on_its_gpu

_CHANNELS = 2048  # channels that a program handles at once
_LARGEST = tl.constexpr(448.0)
_FAINTEST = tl.constexpr(2.0**-100)


@on_its_gpu
def quantise_rows(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Round rows to FP8.

    Args:
        x: [M, K], rows whose channels lie next to each other.
        channels: K', the width of the result; the channels beyond K become zero.

    Returns:
        Codes float8_e4m3fn [M, K'], and scales float32 [M, 1].
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    codes, scales = _results(x, channels)
    if len(x):
        _quantise_kernel[(len(x),)](
            *(x, codes, scales, _row_stride(x), x.shape[1], channels),
            CHANNELS=_CHANNELS,
            enable_fp_fusion=False,
            num_warps=8,
        )
    return codes, scales


@on_its_gpu
def quantised_silu_product(gate: Tensor, up: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Round rows of silu(gate) * up to FP8.

    Args:
        gate: [M, K], rows whose channels lie next to each other.
        up: [M, K] in the dtype of `gate`.
        channels: K', the width of the result; the channels beyond K become zero.

    Returns:
        Codes float8_e4m3fn [M, K'], and scales float32 [M, 1].
    """
    gate, up = (x if x.stride(1) == 1 else x.contiguous() for x in (gate, up))
    codes, scales = _results(gate, channels)
    if len(gate):
        _silu_product_kernel[(len(gate),)](
            *(gate, up, codes, scales, _row_stride(gate), _row_stride(up), gate.shape[1], channels),
            CHANNELS=_CHANNELS,
            enable_fp_fusion=False,
            num_warps=8,
        )
    return codes, scales


def _results(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    codes = torch.empty(len(x), channels, dtype=torch.float8_e4m3fn, device=x.device)
    return codes, torch.empty(len(x), 1, dtype=torch.float32, device=x.device)


def _row_stride(x: Tensor) -> int:
    """Elements from one row to the next. A single row may have any stride, and each would compile another variant."""
    return x.stride(0) if len(x) > 1 else x.shape[1]


@triton.jit
def _quantise_kernel(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    stride: tl.int64,
    K: int,
    channels: int,
    CHANNELS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full((CHANNELS,), _FAINTEST, tl.float32)
    for start in range(0, K, CHANNELS):
        at = start + tl.arange(0, CHANNELS)
        largest = tl.maximum(largest, tl.abs(tl.load(x + row * stride + at, at < K, 0.0).to(tl.float32)))
    top = tl.max(largest, axis=0)
    tl.store(scales + row, tl.div_rn(top, _LARGEST))
    factor = tl.div_rn(_LARGEST, top)
    for start in range(0, channels, CHANNELS):
        at = start + tl.arange(0, CHANNELS)
        number = tl.load(x + row * stride + at, at < K, 0.0).to(tl.float32)
        tl.store(codes + row * channels + at, (number * factor).to(tl.float8e4nv), at < channels)


@triton.jit
def _silu_product(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up in float32, rounded where plain torch rounds."""
    wide = gate.to(tl.float32)
    silu = tl.div_rn(wide, 1.0 + libdevice.exp(-wide)).to(gate.dtype).to(tl.float32)
    return (silu * up.to(tl.float32)).to(gate.dtype).to(tl.float32)


@triton.jit
def _silu_product_kernel(
    gate: tl.tensor,
    up: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    gate_stride: tl.int64,
    up_stride: tl.int64,
    K: int,
    channels: int,
    CHANNELS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    gate += row * gate_stride
    up += row * up_stride
    largest = tl.full((CHANNELS,), _FAINTEST, tl.float32)
    for start in range(0, K, CHANNELS):
        at = start + tl.arange(0, CHANNELS)
        number = _silu_product(tl.load(gate + at, at < K, 0.0), tl.load(up + at, at < K, 0.0))
        largest = tl.maximum(largest, tl.abs(number))
    top = tl.max(largest, axis=0)
    tl.store(scales + row, tl.div_rn(top, _LARGEST))
    factor = tl.div_rn(_LARGEST, top)
    for start in range(0, channels, CHANNELS):
        at = start + tl.arange(0, CHANNELS)
        number = _silu_product(tl.load(gate + at, at < K, 0.0), tl.load(up + at, at < K, 0.0))
        tl.store(codes + row * channels + at, (number * factor).to(tl.float8e4nv), at < channels)
