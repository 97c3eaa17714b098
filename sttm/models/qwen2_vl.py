"""Qwen2-VL (arXiv 2409.12191): two frames and 2x2 patches a token, M-RoPE.

Model doc: https://huggingface.co/docs/transformers/model_doc/qwen2_vl
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sttm.models.base import Family, VideoInputs


class Qwen2VL(Family):
    """Adapter for `model_type: qwen2_vl`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    position_axes: ClassVar[int] = 3
    prefix_end: ClassVar[str] = "<|vision_end|>"

    @property
    def video_token(self) -> str:
        return "<|video_pad|>"

    def preprocess(self, pixels: np.ndarray, seconds: np.ndarray) -> VideoInputs:
        """Resize and cut into patches uint8 [T*H*W*4, 3*2*p*p] with the official processor; normalising comes later."""
        frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        batch = self.processor(
            videos=[frames], do_sample_frames=False, do_rescale=False, do_normalize=False, return_tensors="pt"
        )
        t, h, w = batch["video_grid_thw"][0].tolist()
        merge = self.processor.merge_size
        patches = batch["pixel_values_videos"].numpy()
        first = np.minimum(np.arange(t) * self.processor.temporal_patch_size, len(seconds) - 1)
        return VideoInputs(patches, (t, h // merge, w // merge), seconds, seconds[first])

    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        merge = self.processor.merge_size
        t, h, w = inputs.grid
        grid_thw = torch.tensor([[t, h * merge, w * merge]], device=model.device)
        output = model.model.get_video_features(self._normalised(inputs, model), grid_thw)
        return torch.cat(tuple(output.pooler_output)), ()

    def number(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """Text counts on all three axes; a video token sits at (t, y, x) past the text; then largest plus one.

        transformers 5 goes on at start + max(H, W), the models were trained with the largest position plus one.
        """
        is_video = ids == self._id(self.video_token)
        positions = torch.empty(3, len(ids), dtype=torch.long, device=ids.device)
        start = int(is_video.nonzero()[0])
        stop = start + inputs.tokens
        positions[:, :start] = torch.arange(start, device=ids.device)
        t, h, w = (torch.arange(n, device=ids.device) for n in inputs.grid)
        steps = (t * self.time_step(inputs)).long()
        positions[:, start:stop] = torch.stack(torch.meshgrid(steps, h, w, indexing="ij")).reshape(3, -1) + start
        after = int(positions[:, :stop].max()) + 1
        rest = len(ids) - stop
        positions[:, stop:] = torch.arange(after, after + rest, device=ids.device)
        return positions, after + rest

    def time_step(self, inputs: VideoInputs) -> float:
        """Positions between two grid frames on the time axis."""
        return 1.0

    def _normalised(self, inputs: VideoInputs, model: Any) -> Tensor:
        """Rescale and normalise on the model's device with the official processor's own arithmetic."""
        p = self.processor
        patches = torch.tensor(inputs.pixels, device=model.device)
        planes = patches.view(len(patches), 3, -1, p.patch_size)
        planes = p.rescale_and_normalize(
            planes, p.do_rescale, p.rescale_factor, p.do_normalize, tuple(p.image_mean), tuple(p.image_std)
        )
        return planes.view(len(patches), -1).to(model.dtype)
