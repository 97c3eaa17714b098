"""The resizing of `sttm.models.frame_resizing` as a Triton kernel: the same bytes as the plain torch code makes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sttm.gpu import on_its_gpu

_PIXELS = 512  # pixels of a row that one program makes


@on_its_gpu
def resize_axis(frames: Tensor, axis: int, places: Tensor, weights: Tensor, precision: int) -> Tensor:
    """Resize the rows (`axis` 3) or the columns (`axis` 2) of frames uint8 [n, 3, H, W].

    Args:
        frames: the frames, on a GPU.
        axis: 3 changes W, 2 changes H.
        places: int32 [K, resized], the pixels that each resized pixel reads.
        weights: int32 [K, resized], how much each of them counts.
        precision: how often the weighted sums are to be halved.

    Returns:
        uint8 [n, 3, H, resized] for `axis` 3, uint8 [n, 3, resized, W] for `axis` 2.
    """
    n, channels, height, width = frames.shape
    taps, resized = weights.shape
    rows, columns = (height, resized) if axis == 3 else (resized, width)
    out = torch.empty((n, channels, rows, columns), dtype=torch.uint8, device=frames.device)
    grid = (n * channels * rows, triton.cdiv(columns, _PIXELS))
    _resize_kernel[grid](
        frames.contiguous(),
        out,
        places,
        weights,
        taps,
        precision,
        height,
        width,
        rows,
        columns,
        ALONG_ROWS=axis == 3,
        PIXELS=_PIXELS,
    )
    return out


@triton.jit
def _resize_kernel(
    frames: tl.tensor,
    out: tl.tensor,
    places: tl.tensor,
    weights: tl.tensor,
    taps: int,
    precision: int,
    height: int,
    width: int,
    rows: int,
    columns: int,
    ALONG_ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    plane = (tl.program_id(0) // rows).to(tl.int64)
    row = tl.program_id(0) % rows
    column = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = column < columns
    source = frames + plane * height * width
    total = tl.full((PIXELS,), 0, tl.int32) + (1 << (precision - 1))
    for tap in range(taps):
        if ALONG_ROWS:
            weight = tl.load(weights + tap * columns + column, inside, 0)
            pixel = source + row * width + tl.load(places + tap * columns + column, inside, 0)
        else:
            weight = tl.load(weights + tap * rows + row)
            pixel = source + tl.load(places + tap * rows + row) * width + column
        total += weight * tl.load(pixel, inside, 0).to(tl.int32)
    value = tl.minimum(tl.maximum(total >> precision, 0), 255).to(tl.uint8)
    tl.store(out + (plane * rows + row) * columns + column, value, inside)
