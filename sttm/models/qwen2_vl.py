"""Qwen2-VL (arXiv 2409.12191): a visual token covers two frames and 2x2 patches; positions are M-RoPE.

Model doc: https://huggingface.co/docs/transformers/model_doc/qwen2_vl
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sttm.models.base import Family
from sttm.models.frame_attention import FrameAttention
from sttm.models.frame_resizing import FrameResizing
from sttm.models.mrope import mrope_positions
from sttm.models.patch_embedding import LinearPatchEmbedding
from sttm.models.pixel_bounds import PixelBounds
from sttm.models.video_inputs import VideoInputs


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

    def resizing(self, frames: int, height: int, width: int) -> FrameResizing:
        """Ask the official processor, with a video that has a shape and no pixels."""
        p = self.processor
        frames = max(frames, p.temporal_patch_size)  # Qwen3-VL's processor rejects one frame
        video = torch.empty((frames, 3, height, width), dtype=torch.uint8, device="meta")
        batch = p(videos=[video], do_sample_frames=False, do_rescale=False, do_normalize=False, **self._size(frames))
        _, rows, columns = batch["video_grid_thw"][0].tolist()
        size = (rows * p.patch_size, columns * p.patch_size)
        return FrameResizing(size, size, p.resample)

    @property
    def frames_a_token(self) -> int:
        """The patches of a Qwen model reach over two frames."""
        return int(self.processor.temporal_patch_size)

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """A token covers 2x2 patches."""
        side = self.processor.patch_size * self.processor.merge_size
        return height // side, width // side

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
        _, h, w = inputs.grid
        grid_thw = torch.tensor([[len(np.unique(inputs.features_from)), h * merge, w * merge]])
        visual = model.model.visual
        # Call the tower itself, because the output of `get_video_features` differs between versions of transformers.
        output = visual(
            self._normalised(inputs, model), grid_thw=grid_thw.to(model.device), **self.segments(visual, grid_thw)
        )
        levels = getattr(output, "deepstack_features", None) or ()
        return inputs.for_all_frames(output.pooler_output), tuple(inputs.for_all_frames(level) for level in levels)

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
        """Cut the frames to be encoded into patches and normalise them on the model's device.

        A method of the official processor normalises them.
        """
        p = self.processor
        patches = self._patches(inputs.frames_to_encode(model.device, self.frames_a_token))
        planes = patches.view(len(patches), 3, -1, p.patch_size)
        planes = p.rescale_and_normalize(
            planes, p.do_rescale, p.rescale_factor, p.do_normalize, tuple(p.image_mean), tuple(p.image_std)
        )
        return planes.view(len(patches), -1).to(model.dtype)

    def _patches(self, frames: Tensor) -> Tensor:
        """Cut frames [F, H', W', 3] into patches [T*H*W*4, 3*2*p*p], in the order of the official processor.

        The four patches of a token follow one another.
        """
        size, merge, together = self.processor.patch_size, self.processor.merge_size, self.frames_a_token
        cut = frames.unflatten(2, (-1, merge, size)).unflatten(1, (-1, merge, size)).unflatten(0, (-1, together))
        # T, frame, row of tokens, row in it, y, column of tokens, column in it, x, colour
        ordered = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return ordered.reshape(-1, 3 * together * size * size)
