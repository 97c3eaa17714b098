"""Rows of FP8 numbers (e4m3, arXiv 2209.05433), each row with a scale of its own, and products of such rows.

A row is divided by a scale that brings its largest number to 448, the largest of FP8. As no row sees another one,
the numbers of a token do not depend on the other tokens of a batch. The plain torch code in this file defines the
results and runs on a CPU, where it emulates FP8: it multiplies the rounded numbers in float32. On a GPU Triton kernels
round to the same codes, and tensor cores multiply them.

Shapes: M rows, K channels of a row, N channels of a result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sttm.errors import ModelError

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # the largest FP8 number
_FAINTEST = 2.0**-100  # a row without larger numbers becomes zeros; its scale could not be inverted
_ALIGNMENT = 16  # tensor cores take channels in groups of 16
_ADA = (8, 9)  # compute capability of the first GPUs with FP8: Ada, then Hopper, Blackwell


@dataclass(frozen=True)
class Fp8Rows:
    """Rows of FP8 numbers, such as quantised activations, or a quantised weight with one row for each output channel.

    Attributes:
        codes: float8_e4m3fn [M, K'], where K' is K rounded up to a multiple of 16. The added channels are zero.
        scales: float32 [M, 1]; a number is its code times the scale of its row.
        leading: the shape that the M rows stand for, such as (B, Q) for activations [B, Q, K].
    """

    codes: Tensor
    scales: Tensor
    leading: torch.Size

    def __post_init__(self) -> None:
        rows, channels = self.codes.shape
        if self.codes.dtype != FP8 or channels % _ALIGNMENT or tuple(self.scales.shape) != (rows, 1):
            raise ValueError(
                f"Fp8Rows of codes {self.codes.dtype} {tuple(self.codes.shape)} and scales {tuple(self.scales.shape)}; "
                f"expected {FP8} [M, a multiple of {_ALIGNMENT}] and [M, 1]"
            )

    def numbers(self) -> Tensor:
        """float32 [M, K'], the numbers that the rows stand for."""
        return self.codes.float() * self.scales


def quantise_rows(x: Tensor) -> Fp8Rows:
    """Round the rows of `x` [..., K], in any float dtype, to FP8."""
    if x.is_cuda:
        from sttm.models import fp8_kernels

        codes, scales = fp8_kernels.quantise_rows(x.flatten(0, -2), aligned(x.shape[-1]))
        return Fp8Rows(codes, scales, x.shape[:-1])
    wide = x.flatten(0, -2).float()
    largest = wide.abs().amax(-1, keepdim=True).clamp_min(_FAINTEST)
    # A number divided by a tensor would be its reciprocal times the number, which is rounded twice.
    codes = (wide * (torch.full_like(largest, _LARGEST) / largest)).to(FP8)
    return Fp8Rows(pad_channels(codes), largest / _LARGEST, x.shape[:-1])


def quantised_quick_gelu(x: Tensor) -> Fp8Rows:
    """x * sigmoid(1.702 x) for `x` [..., K], rounded to FP8."""
    if x.is_cuda:
        from sttm.models import fp8_kernels

        codes, scales = fp8_kernels.quantised_quick_gelu(x.flatten(0, -2), aligned(x.shape[-1]))
        return Fp8Rows(codes, scales, x.shape[:-1])
    return quantise_rows(x * torch.sigmoid(1.702 * x))


def quantised_silu_product(gate: Tensor, up: Tensor) -> Fp8Rows:
    """silu(gate) * up, rounded to FP8, for two tensors [..., K] of the same shape and dtype."""
    if gate.is_cuda:
        from sttm.models import fp8_kernels

        rows = (gate.flatten(0, -2), up.flatten(0, -2))
        codes, scales = fp8_kernels.quantised_silu_product(*rows, aligned(gate.shape[-1]))
        return Fp8Rows(codes, scales, gate.shape[:-1])
    return quantise_rows(nn.functional.silu(gate) * up)


def product(rows: Fp8Rows, weight: Fp8Rows, bias: Tensor | None) -> Tensor:
    """rows @ weight^T + bias, summed in float32 and rounded to bfloat16.

    Args:
        rows: M rows of K' channels.
        weight: N rows of K' channels, N divisible by 16.
        bias: bfloat16 [N]; None adds nothing.

    Returns:
        bfloat16 [M, N].
    """
    if rows.codes.is_cuda:
        return torch._scaled_mm(
            rows.codes,
            weight.codes.t(),
            scale_a=rows.scales,
            scale_b=weight.scales.t(),
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=False,  # with it, sums over 18,944 channels were off by more than 3 % on an H200
        )
    out = (rows.codes.float() @ weight.codes.float().t()) * rows.scales * weight.scales.t()
    return (out if bias is None else out + bias.float()).to(torch.bfloat16)


def aligned(channels: int) -> int:
    """The number of channels, rounded up to what tensor cores take."""
    return -(-channels // _ALIGNMENT) * _ALIGNMENT


def pad_channels(codes: Tensor) -> Tensor:
    """FP8 codes [M, K] with zero channels added, so that tensor cores take them: [M, K']."""
    missing = aligned(codes.shape[1]) - codes.shape[1]
    # Not every torch pads FP8 itself, so its bytes are padded; a zero byte is the number zero.
    return nn.functional.pad(codes.view(torch.uint8), (0, missing)).view(FP8) if missing else codes.contiguous()


def require_fp8(device: torch.device) -> None:
    """Check that a device can multiply FP8 rows. A CPU can, by emulation.

    A GPU without FP8 could emulate it too, but more slowly than it computes in bfloat16, and FP8 is chosen for speed. A
    CPU is slow in any case, and there the emulation lets questions be asked of a store that a GPU has made.

    Raises:
        ModelError: the GPU has no FP8, or this PyTorch has no product of scaled rows for it.
    """
    if device.type != "cuda":
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    cure = "set model.dtype=bfloat16 and index again, or use another GPU (Ada, Hopper or newer) or a CPU"
    if capability < _ADA:
        found = ".".join(map(str, capability))
        raise ModelError(f"model.dtype=fp8: {name} has no FP8 (compute capability {found}, needed is 8.9); {cure}")
    try:
        rows = quantise_rows(torch.ones(_ALIGNMENT, _ALIGNMENT, dtype=torch.bfloat16, device=device))
        product(rows, rows, None)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        cause = str(error).splitlines()[0]
        raise ModelError(f"model.dtype=fp8: PyTorch cannot multiply FP8 rows on {name} ({cause}); {cure}") from error
