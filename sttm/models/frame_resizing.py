"""Resize frames exactly as the official video processors do, one at a time on a CPU, or many at a time on a GPU.

The processors call torchvision, which for uint8 on a CPU resizes in integers: the weights of each output pixel are
int16, and the rows are resized and rounded to uint8 before the columns. torch has no kernel for uint8 on a GPU, and its
float32 kernel differs by up to 2 levels on noise, because it does not round between rows and columns. So
`resize_bicubic` computes the same integers, with plain tensor operations on a CPU and with a kernel on a GPU.

Source of the arithmetic: ATen/native/cpu/UpSampleKernel.cpp and ATen/native/UpSample.h of PyTorch, after Pillow's
Resample.c. The filter is the cubic convolution of Keys (1981) with a = -0.5, widened by the scale to prevent aliasing.

Shapes: n frames, (H, W) their size, (H', W') their size afterwards, K taps: input pixels that an output pixel reads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CUBIC_A = -0.5
_SUPPORT = 2.0  # the filter is zero from here on, in pixels of the smaller picture
_BITS_OF_WEIGHT = 15
_MOST_PRECISION = 22


@dataclass(frozen=True)
class FrameResizing:
    """How the frames of one video are resized.

    Attributes:
        size: height and width of a frame for the vision tower.
        resized: height and width to which a frame is scaled, before it is cropped or padded to `size`.
        resample: the filter, as a number of Pillow (`PIL.Image.Resampling`).
        crop: crops and pads scaled frames uint8 [n, 3, *resized] to [n, 3, *size]; None leaves them as they are.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    resample: int
    crop: Callable[[Tensor], Tensor] | None = None

    def resize(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize one frame on the CPU: uint8 [H, W, 3] -> uint8 [H', W', 3]."""
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        return self.on_device(pixels)[0].permute(1, 2, 0).numpy()

    def on_device(self, frames: Tensor) -> Tensor:
        """Resize frames where they lie: uint8 [n, 3, H, W] -> uint8 [n, 3, H', W'], equal on every device.

        On a GPU other filters than the bicubic one, which no known checkpoint asks for, may differ from a CPU.
        """
        scaled = resize_on_device(frames, self.resized, self.resample)
        return scaled if self.crop is None else self.crop(scaled)


def resize_on_device(frames: Tensor, size: tuple[int, int], resample: int) -> Tensor:
    """Resize frames as torchvision resizes them on a CPU.

    Args:
        frames: uint8 [n, 3, H, W], on any device.
        size: (H', W').
        resample: the filter, as a number of Pillow.

    Returns:
        uint8 [n, 3, H', W'], on the device of the frames.
    """
    from torchvision.transforms.v2 import functional
    from transformers.image_utils import pil_torch_interpolation_mapping

    filter_ = pil_torch_interpolation_mapping[resample]
    if frames.is_cuda and filter_ == functional.InterpolationMode.BICUBIC:
        return resize_bicubic(frames, size)
    return functional.resize(frames, list(size), interpolation=filter_, antialias=True)


def resize_bicubic(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize frames bicubically without aliasing, in the integers of torch's kernel for uint8 on a CPU.

    On a CPU it takes about 12 * H * W' bytes of memory for each frame and channel, so give it a few frames at a time.

    Args:
        frames: uint8 [n, 3, H, W], on any device.
        size: (H', W').

    Returns:
        uint8 [n, 3, H', W'], equal to the result of torch on a CPU.
    """
    return _resize_axis(_resize_axis(frames, 3, size[1]), 2, size[0])


def _resize_axis(pixels: Tensor, axis: int, length: int) -> Tensor:
    if pixels.shape[axis] == length:
        return pixels
    places, weights, precision = _taps_on(pixels.shape[axis], length, pixels.device)
    if pixels.is_cuda:
        from sttm.models import resize_kernels

        return resize_kernels.resize_axis(pixels, axis, places, weights, precision)
    shape = [*pixels.shape[:axis], length, *pixels.shape[axis + 1 :]]
    total = torch.full(shape, 1 << (precision - 1), dtype=torch.int32, device=pixels.device)
    for place, weight in zip(places, weights, strict=True):
        total += pixels.index_select(axis, place) * (weight if axis == 3 else weight[:, None])
    return (total >> precision).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _taps_on(length: int, resized: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """`_taps` with its tables int32 [K, resized] on a device."""
    places, weights, precision = _taps(length, resized)
    return torch.from_numpy(places).to(device), torch.from_numpy(weights).to(device), precision


def _taps(length: int, resized: int) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Which pixels of a row each resized pixel reads, and how much each of them counts.

    Returns:
        Indices int32 [K, resized], weights int32 [K, resized], and how often the weighted sums are to be halved.
    """
    scale = length / resized
    widening = max(scale, 1.0)
    support = _SUPPORT * widening
    taps = int(np.ceil(support)) * 2 + 1
    center = scale * (np.arange(resized) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.clip(np.minimum((center + support + 0.5).astype(np.int64), length) - first, 0, taps)
    tap = np.arange(taps)[:, None]
    values = np.where(tap < count, _cubic((tap + first - center + 0.5) * (1.0 / widening)), 0.0)
    total = np.zeros(resized)
    for row in values:  # one after the other, as the kernel adds them
        total += row
    values /= total
    precision = 0
    while precision < _MOST_PRECISION and int(0.5 + values.max() * (1 << (precision + 1))) < 1 << _BITS_OF_WEIGHT:
        precision += 1
    scaled = values * (1 << precision)
    weights = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    return np.minimum(first + tap, length - 1).astype(np.int32), weights, precision


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = _CUBIC_A, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
