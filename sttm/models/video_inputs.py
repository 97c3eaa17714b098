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
        features_from: int64 [T], the grid frame whose features each grid frame takes: itself, or an earlier one that
            looks the same (see `sttm.models.still_frames`).
    """

    pixels: np.ndarray | Tensor
    grid: tuple[int, int, int]
    seconds: np.ndarray
    frame_seconds: np.ndarray
    features_from: np.ndarray

    def __post_init__(self) -> None:
        is_uint8 = self.pixels.dtype in (np.uint8, torch.uint8)
        is_rgb = self.pixels.ndim == 4 and self.pixels.shape[3] == 3 and len(self.pixels) == len(self.seconds)
        is_of_grid = min(self.grid) > 0 and len(self.frame_seconds) == len(self.features_from) == self.grid[0]
        if not is_uint8 or not is_rgb or not is_of_grid:
            raise ValueError(
                f"VideoInputs needs uint8 pixels [F, H', W', 3], F times, and one time and one source of features for "
                f"each grid frame, got {self.pixels.dtype} {tuple(self.pixels.shape)}, {len(self.seconds)} times, grid "
                f"{self.grid}, {len(self.frame_seconds)} times of grid frames and {len(self.features_from)} sources"
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

    def frames_to_encode(self, device: torch.device, frames_a_token: int) -> Tensor:
        """The frames of the grid frames that have features of their own.

        Args:
            device: where the frames are needed.
            frames_a_token: sampled frames in one grid frame, n. The last frame is repeated if it lacks others.

        Returns:
            uint8 [encoded grid frames * n, H', W', 3].
        """
        frames, encoded = self.pixels_on(device), np.unique(self.features_from)
        numbers = (encoded[:, None] * frames_a_token + np.arange(frames_a_token)).clip(max=len(frames) - 1).ravel()
        return frames if len(numbers) == len(frames) else frames[torch.from_numpy(numbers).to(device)]

    def for_all_frames(self, features: Tensor) -> Tensor:
        """Repeat the features of encoded grid frames for those that look like them.

        Args:
            features: [cells of the encoded grid frames, C], in raster order.

        Returns:
            [T*H*W, C], on the same device.
        """
        encoded, source = np.unique(self.features_from, return_inverse=True)
        if len(encoded) == len(source):
            return features
        return features.unflatten(0, (len(encoded), -1))[torch.from_numpy(source).to(features.device)].flatten(0, 1)
