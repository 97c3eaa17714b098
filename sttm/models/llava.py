"""What the LLaVA families share: frames of one square size, pooled grids, 1-D positions.

Shapes: F frames, S the side of a frame's token grid after pooling, C hidden size of the language model.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sttm.models.base import Family, VideoInputs

# Frames in one pass of the vision tower. transformers keeps the hidden states of all its layers until the pass ends:
# 43 MB a frame in SigLIP-so400m and bfloat16, so 5.5 GB for 128 frames at once.
_FRAMES_A_PASS = 32


class Llava(Family):
    """Parent of the LLaVA adapters."""

    @property
    def video_token(self) -> str:
        return "<video>"

    @property
    @abstractmethod
    def side(self) -> int:
        """S, rows and columns of visual tokens a frame."""

    def preprocess(self, pixels: np.ndarray, seconds: np.ndarray) -> VideoInputs:
        """Resize to uint8 [F, 3, image_size, image_size] with the official processor; normalising comes later."""
        frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        batch = self.processor(
            videos=[frames], do_sample_frames=False, do_rescale=False, do_normalize=False, return_tensors="pt"
        )
        return VideoInputs(
            batch["pixel_values_videos"][0].numpy(), (len(frames), self.side, self.side), seconds, seconds
        )

    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        pixels = self._normalised(inputs, model)
        return torch.cat([self.features(model, part) for part in pixels.split(_FRAMES_A_PASS)]), ()

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        """Embeddings [F*S*S, C] of normalised frames [F, 3, H, W], without separators.

        The argument is positional because its name differs between versions of transformers, and so does what comes
        back: [1, F*S*S, C] or one [F, S*S, C] a video, with image_newline behind it (OneVision in 5.23) or without.
        """
        output = model.model.get_video_features(pixels[None]).pooler_output[0]
        return output.reshape(-1, output.shape[-1])[: len(pixels) * self.side**2]

    def number(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """0, 1, 2, ..."""
        return torch.arange(len(ids), device=ids.device)[None], len(ids)

    def _normalised(self, inputs: VideoInputs, model: Any) -> Tensor:
        """Rescale and normalise on the model's device with the official processor's own arithmetic."""
        p = self.processor
        frames = inputs.pixels_on(model.device)
        frames = p.rescale_and_normalize(
            frames, p.do_rescale, p.rescale_factor, p.do_normalize, tuple(p.image_mean), tuple(p.image_std)
        )
        return frames.to(model.dtype)
