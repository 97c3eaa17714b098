"""The memory for the sampled frames of one video on a GPU."""

import torch
from torch import Tensor

from sttm.video.frame_buffer import FrameBuffer, Resizing


class GpuFrameBuffer(FrameBuffer):
    """Holds the kept frames of a video as tensors on the current GPU."""

    def on_cpu(self, frames: int) -> FrameBuffer:
        """An empty buffer on the CPU for the first `frames` frames of the video, which gives them the size of all."""
        return FrameBuffer(frames, self._max_bytes, self._where, self._resizer and self._as_planned)

    def _as_planned(self, frames: int, height: int, width: int) -> Resizing:
        assert self._resizer is not None
        return self._resizer(self._capacity, height, width)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device="cuda")

    def _resized(self, resizing: Resizing, frame: Tensor) -> Tensor:
        return resizing.on_device(frame.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
