"""Qwen2-VL (arXiv 2409.12191): a visual token covers two frames and 2x2 patches; positions are M-RoPE.

Model doc: https://huggingface.co/docs/transformers/model_doc/qwen2_vl
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sttm.models.base import Family, VideoInputs
from sttm.models.frame_attention import FrameAttention
from sttm.models.mrope import mrope_positions
from sttm.models.patch_embedding import LinearPatchEmbedding
from sttm.models.pixel_bounds import PixelBounds


class Qwen2VL(Family):
    """Adapter for `model_type: qwen2_vl`, and parent of the adapters of Qwen2.5-VL and Qwen3-VL."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    processor_class: ClassVar[str] = "Qwen2VLVideoProcessor"
    # 128 to 768 tokens of 28x28 pixels for two frames, and 24,576 tokens for a video of up to 366 frames.
    default_bounds: ClassVar[PixelBounds | None] = PixelBounds(128 * 28**2, 768 * 28**2, 2 * 24_576 * 28**2)
    prefix_end: ClassVar[str | None] = "<|vision_end|>"

    @property
    def video_token(self) -> str:
        """The placeholder of one visual token."""
        return "<|video_pad|>"

    @staticmethod
    def prepare(model: Any) -> None:
        """Replace patch embedding and attention of the tower by faster modules with the same weights and outputs."""
        visual = model.model.visual
        visual.patch_embed = LinearPatchEmbedding(visual.patch_embed.proj)
        for block in visual.blocks:
            block.attn = FrameAttention(block.attn)

    def preprocess(self, pixels: np.ndarray, seconds: np.ndarray) -> VideoInputs:
        """Resize and cut into patches uint8 [T*H*W*4, 3*2*p*p] with the official processor, without normalising yet."""
        lacking = max(0, self.processor.temporal_patch_size - len(pixels))  # Qwen3-VL's processor rejects one frame
        pixels = np.pad(pixels, ((0, lacking), (0, 0), (0, 0), (0, 0)), mode="edge") if lacking else pixels
        frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        batch = self.processor(
            videos=[frames],
            do_sample_frames=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
            **self._size(len(frames)),
        )
        t, h, w = batch["video_grid_thw"][0].tolist()
        merge = self.processor.merge_size
        patches = batch["pixel_values_videos"].numpy()
        first = np.minimum(np.arange(t) * self.processor.temporal_patch_size, len(seconds) - 1)
        return VideoInputs(patches, (t, h // merge, w // merge), seconds, seconds[first])

    def _size(self, frames: int) -> dict[str, dict[str, int]]:
        """The argument of the processor that bounds a frame's pixels; empty if its own settings count."""
        if self.pixel_bounds is None:
            return {}
        shortest, longest = self.edges(self.pixel_bounds, frames)
        return {"size": {"shortest_edge": shortest, "longest_edge": longest}}

    def edges(self, bounds: PixelBounds, frames: int) -> tuple[int, int]:
        """The processor's settings `shortest_edge` and `longest_edge`; despite their names they are areas in pixels."""
        return bounds.for_video(frames)

    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the vision tower: embeddings [N, C], and deepstack levels [N, C] if the tower has any (Qwen3-VL)."""
        merge = self.processor.merge_size
        t, h, w = inputs.grid
        grid_thw = torch.tensor([[t, h * merge, w * merge]])
        visual = model.model.visual
        # Call the tower itself, because the output of `get_video_features` differs between versions of transformers.
        output = visual(
            self._normalised(inputs, model), grid_thw=grid_thw.to(model.device), **self.segments(visual, grid_thw)
        )
        return output.pooler_output, tuple(getattr(output, "deepstack_features", None) or ())

    def segments(self, visual: nn.Module, grid_thw: Tensor) -> dict[str, Any]:
        """Arguments of the tower that say where the segments of its attention begin and end.

        They are computed once and kept on the CPU, so that no layer has to wait for the GPU to read them.

        Args:
            visual: the vision tower.
            grid_thw: int64 [1, 3], (grid frames, rows, columns) in patches, on the CPU.
        """
        t, h, w = grid_thw[0].tolist()
        return {"cu_seqlens": torch.arange(t + 1, dtype=torch.int32) * (h * w), "max_seqlen": h * w}

    def position_ids(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """M-RoPE positions int64 [3, L] and the next free position (see `sttm.models.mrope`)."""
        return mrope_positions(ids == self._id(self.video_token), inputs.grid, self.time_step(inputs))

    def time_step(self, inputs: VideoInputs) -> float:
        """Number of positions between two grid frames on the time axis."""
        return 1.0

    def _normalised(self, inputs: VideoInputs, model: Any) -> Tensor:
        """Rescale and normalise the pixels on the model's device, by a method of the official processor."""
        p = self.processor
        patches = inputs.pixels_on(model.device)
        planes = patches.view(len(patches), 3, -1, p.patch_size)
        planes = p.rescale_and_normalize(
            planes, p.do_rescale, p.rescale_factor, p.do_normalize, tuple(p.image_mean), tuple(p.image_std)
        )
        return planes.view(len(patches), -1).to(model.dtype)
