"""The conversion of `sttm.video.colour` as a Triton kernel, which gives the same bytes as the plain torch code."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sttm.gpu import on_its_gpu

_PIXELS = 512  # pixels of a row that one program handles


@on_its_gpu
def to_rgb(luma: Tensor, chroma: Tensor, matrix: tuple[int, ...]) -> Tensor:
    """Convert NV12 planes to RGB.

    Args:
        luma: uint8 [H, W], whose rows may be padded.
        chroma: uint8 [H / 2, W / 2, 2], whose rows may be padded.
        matrix: the six numbers of a `sttm.video.colour.ColourMatrix`, in their order.

    Returns:
        uint8 [3, H, W].
    """
    height, width = luma.shape
    out = torch.empty((3, height, width), dtype=torch.uint8, device=luma.device)
    grid = (height, triton.cdiv(width, _PIXELS))
    _to_rgb_kernel[grid](luma, chroma, out, height, width, luma.stride(0), chroma.stride(0), *matrix, PIXELS=_PIXELS)
    return out


@triton.jit
def _to_rgb_kernel(
    luma: tl.tensor,
    chroma: tl.tensor,
    out: tl.tensor,
    height: int,
    width: int,
    luma_row: int,
    chroma_row: int,
    factor: int,
    black: int,
    red_v: int,
    green_u: int,
    green_v: int,
    blue_u: int,
    PIXELS: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    column = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = column < width
    y = tl.load(luma + row * luma_row + column, inside, 0).to(tl.int32)
    pair = chroma + (row // 2) * chroma_row + (column // 2) * 2
    u = (tl.load(pair, inside, 0).to(tl.int32) << 3) - 1024
    v = (tl.load(pair + 1, inside, 0).to(tl.int32) << 3) - 1024
    y = (((y << 3) - black) * factor) >> 16
    red = y + ((v * red_v) >> 16)
    green = y + ((u * green_u) >> 16) + ((v * green_v) >> 16)
    blue = y + ((u * blue_u) >> 16)
    place = out + row * width + column
    plane = height * width
    tl.store(place, tl.minimum(tl.maximum(red, 0), 255).to(tl.uint8), inside)
    tl.store(place + plane, tl.minimum(tl.maximum(green, 0), 255).to(tl.uint8), inside)
    tl.store(place + 2 * plane, tl.minimum(tl.maximum(blue, 0), 255).to(tl.uint8), inside)
