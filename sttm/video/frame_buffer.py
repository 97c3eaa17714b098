"""The memory for the sampled frames of one video, in which each frame is resized as it arrives.

A model takes small frames. Two minutes of 1080p at one frame a second are 796 MB in RGB, and 110 MB at the size of a
Qwen2-VL with 364 tokens a frame. So a frame is resized as soon as it is decoded, and only the small one is kept.

To which size a model resizes can depend on the number of frames. This file takes the number that was planned. If
frames turn out to be lost, `is_sized_for` says whether the model would have taken another size for those that are left.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sttm.errors import VideoError

Pixels = Any  # uint8: a numpy array, or a torch tensor on a GPU; this file does not import torch


class Resizing(Protocol):
    """How the frames of one video are resized; decided once for a video."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a resized frame."""

    def resize(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize one upright RGB frame: uint8 [H, W, 3] -> uint8 [H', W', 3]."""

    def on_device(self, frames: Any) -> Any:
        """Resize torch tensors uint8 [n, 3, H, W] on their device: uint8 [n, 3, H', W'], the bytes of `resize`."""


# Decides how to resize a video from its number of frames, and the height and width of its first frame. It raises a
# ValueError if a model cannot take frames of this shape.
Resizer = Callable[[int, int, int], Resizing]


class FrameBuffer:
    """Holds the kept frames of a video, all of one size, which the first frame decides.

    Args:
        frames: the most frames that the buffer will hold. The size of the resized frames is decided for this number.
        max_bytes: the most bytes of all these frames together.
        where: name of the video, for error messages.
        resizer: decides to which size frames are resized; None keeps them as they are.

    Attributes:
        source_size: height and width of the frames before they are resized; None before the first frame.
    """

    def __init__(self, frames: int, max_bytes: int, where: str, resizer: Resizer | None = None) -> None:
        self._capacity, self._max_bytes, self._where, self._resizer = frames, max_bytes, where, resizer
        self._resizing: Resizing | None = None
        self.source_size: tuple[int, int] | None = None
        self.clear()

    def clear(self) -> None:
        """Drop the frames, for a decoder that begins anew."""
        self._count, self.source_size = 0, None
        self._pixels = self._empty(0, 0, 0, 3)

    def truncate(self, count: int) -> None:
        """Drop all frames but the first `count`."""
        if not count:
            self.clear()
        self._count = min(self._count, count)

    def append(self, frame: Pixels) -> None:
        """Resize an upright RGB frame uint8 [H, W, 3] and keep it. All frames have the size of the first one.

        Raises:
            VideoError: `unusable_frames`, if the model cannot take frames of this shape; `too_many_pixels`, if all
                frames together would take more than `max_bytes`.
        """
        if self.source_size is None:
            self._begin(frame.shape[0], frame.shape[1])
        self._pixels[self._count] = frame if self._resizing is None else self._resized(self._resizing, frame)
        self._count += 1

    @property
    def pixels(self) -> Pixels:
        """uint8 [frames kept so far, H', W', 3], a view."""
        return self._pixels[: self._count]

    def is_sized_for(self, frames: int) -> bool:
        """Whether a video of only so many frames would have frames of the same size."""
        if self._resizing is None or self._resizer is None or self.source_size is None:
            return True
        return self._resizer(frames, *self.source_size).size == self._resizing.size

    def _begin(self, height: int, width: int) -> None:
        size = (height, width)
        if self._resizer is not None:
            try:
                self._resizing = self._resizer(self._capacity, height, width)
            except ValueError as error:  # for example, the model's processor refuses the aspect ratio
                raise VideoError("unusable_frames", f"{self._where}: {error}") from error
            size = self._resizing.size
        if (size_bytes := self._capacity * size[0] * size[1] * 3) > self._max_bytes:
            what = f"{self._capacity} frames of {size[1]}×{size[0]} take {size_bytes} bytes"
            raise VideoError(
                "too_many_pixels", f"{self._where}: {what}, over max_decoded_bytes; lower max_frames or scale it down"
            )
        self._pixels = self._empty(self._capacity, *size, 3)
        self.source_size = (height, width)

    def _empty(self, *shape: int) -> Pixels:
        return np.empty(shape, np.uint8)

    def _resized(self, resizing: Resizing, frame: Pixels) -> Pixels:
        return resizing.resize(frame)
