"""Turn the planes of a decoded frame into RGB on their device, with the very bytes that swscale makes on a CPU.

swscale computes in integers, so the same sums give the same bytes on any device. The plain torch code in this file
defines the result; on a GPU a kernel in `sttm.video.triton_kernels` computes it.

Source: `libswscale/yuv2rgb.c` and `x86/yuv_2_rgb.asm` of FFmpeg 8 (tables, and rounding of the code for x86).
"""

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

# Red from V, blue from U, green from U, green from V, times 65536, by FFmpeg's number of the colour space.
_INVERSE_TABLES = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    2: (104597, 132201, 25675, 53279),  # unspecified, taken as BT.601
    4: (104448, 132798, 24759, 53109),  # FCC
    5: (104597, 132201, 25675, 53279),  # BT.601, 625 lines
    6: (104597, 132201, 25675, 53279),  # BT.601, 525 lines
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020, not constant luminance
}


@dataclass(frozen=True)
class ColourMatrix:
    """The numbers with which swscale turns 8-bit YUV into RGB: factors count 1/8192, and the planes count eightfold.

    Attributes:
        luma: factor of Y.
        black: Y of black, eightfold.
        red_v: factor of V in red.
        green_u: factor of U in green.
        green_v: factor of V in green.
        blue_u: factor of U in blue.
    """

    luma: int
    black: int
    red_v: int
    green_u: int
    green_v: int
    blue_u: int


def colour_matrix(colour_space: int, *, is_full_range: bool) -> ColourMatrix | None:
    """The matrix that swscale takes for a colour space of FFmpeg; None if swscale has no table for the colour space."""
    if colour_space not in _INVERSE_TABLES:
        return None
    red_v, blue_u, green_u, green_v = _INVERSE_TABLES[colour_space]
    luma, black = 1 << 16, 0
    if is_full_range:
        red_v, blue_u, green_u, green_v = (number * 224 // 255 for number in (red_v, blue_u, green_u, green_v))
    else:
        luma, black = luma * 255 // 219, 16 << 3
    colours = (_factor(number) for number in (red_v, -green_u, -green_v, blue_u))
    return ColourMatrix(_factor(luma), black, *colours)


def _factor(number: int) -> int:
    """A number that counts 1/65536 as an int16 that counts 1/8192."""
    return max(-0x8000, min(((number << 13) + (1 << 15)) >> 16, 0x7FFF))


def to_rgb(luma: Tensor, chroma: Tensor, matrix: ColourMatrix) -> Tensor:
    """Convert the planes of an NV12 frame of H x W pixels, both even.

    Args:
        luma: uint8 [H, W].
        chroma: uint8 [H / 2, W / 2, 2], U and V.
        matrix: the colour matrix of the frame.

    Returns:
        uint8 [3, H, W], contiguous.
    """
    if luma.is_cuda:
        from sttm.video import triton_kernels

        return triton_kernels.to_rgb(luma, chroma, astuple(matrix))
    y = ((luma.int() << 3) - matrix.black) * matrix.luma >> 16
    wide = ((chroma.int() << 3) - (128 << 3)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    u, v = wide.unbind(-1)
    green = (u * matrix.green_u >> 16) + (v * matrix.green_v >> 16)
    rgb = torch.stack([y + (v * matrix.red_v >> 16), y + green, y + (u * matrix.blue_u >> 16)])
    return rgb.clamp_(0, 255).to(torch.uint8)
