"""A video between the decoder and the vision tower: small frames in uint8, and where they stand in time."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoInputs:
    """A video as the vision tower takes it, but still in uint8 and as whole frames, so that it is small to send.

    The vision tower's adapter cuts the frames into patches and normalises them on the model's device.

    Attributes:
        pixels: uint8 [F, H', W', 3], RGB frames resized as the official processor of the family does it: an array, or
            a tensor for frames that were decoded on a GPU.
        grid: (T, H, W) of the visual tokens inside the LLM.
        seconds: float64 [F], presentation times of the sampled frames.
        frame_seconds: float64 [T], presentation time of the first sampled frame of each grid frame.
    """

    pixels: np.ndarray | Tensor
    grid: tuple[int, int, int]
    seconds: np.ndarray
    frame_seconds: np.ndarray

    def __post_init__(self) -> None:
        is_uint8 = self.pixels.dtype in (np.uint8, torch.uint8)
        is_rgb = self.pixels.ndim == 4 and self.pixels.shape[3] == 3 and len(self.pixels) == len(self.seconds)
        if not is_uint8 or not is_rgb or len(self.frame_seconds) != self.grid[0] or min(self.grid) < 1:
            raise ValueError(
                f"VideoInputs needs uint8 pixels [F, H', W', 3], F times and one time for each grid frame, got "
                f"{self.pixels.dtype} {tuple(self.pixels.shape)}, {len(self.seconds)} times, grid {self.grid} and "
                f"{len(self.frame_seconds)} times of grid frames"
            )

    @property
    def tokens(self) -> int:
        """Number of visual tokens before the merge."""
        t, h, w = self.grid
        return t * h * w

    def page_locked(self) -> "VideoInputs":
        """Copy the pixels into page-locked memory, from which a GPU reads at the full rate of the bus.

        Pixels on a GPU stay where they are.
        """
        if isinstance(self.pixels, Tensor):
            return self
        pixels = torch.empty(self.pixels.shape, dtype=torch.uint8, pin_memory=True).numpy()
        np.copyto(pixels, self.pixels)
        return replace(self, pixels=pixels)

    def pixels_on(self, device: torch.device) -> Tensor:
        """The pixels uint8 [F, H', W', 3] on a device; pixels that lie there already are not copied.

        From page-locked memory the copy is queued on the device's current stream.
        """
        if isinstance(self.pixels, Tensor):
            return self.pixels.to(device, non_blocking=True)
        # Arrays from Ray's object store are read-only, and torch warns when it shares such memory, so copy it.
        pixels = torch.from_numpy(self.pixels) if self.pixels.flags.writeable else torch.tensor(self.pixels)
        return pixels.to(device, non_blocking=True)
