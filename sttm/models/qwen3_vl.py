"""Qwen3-VL (arXiv 2511.21631): time stamps as text before each frame, and deepstack features for the first layers.

Model doc: https://huggingface.co/docs/transformers/model_doc/qwen3_vl

A video becomes `<0.3 seconds><|vision_start|>...<|vision_end|><1.3 seconds><|vision_start|>...`. The chat template
writes one more pair of <|vision_start|> and <|vision_end|> around the whole video. transformers 4, vLLM and Qwen's own
tools replace that pair by the frames, and transformers 5 keeps it. This adapter drops the pair, as in the training of
the models. The prefix ids, which are stored with every cache, show it.
"""

from typing import ClassVar

import numpy as np
from torch import Tensor

from sttm.models.mrope import mrope_positions
from sttm.models.pixel_bounds import PixelBounds
from sttm.models.qwen2_vl import Qwen2VL
from sttm.models.video_inputs import VideoInputs

_START, _END = "<|vision_start|>", "<|vision_end|>"


class Qwen3VL(Qwen2VL):
    """Adapter for `model_type: qwen3_vl`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    processor_class: ClassVar[str] = "Qwen3VLVideoProcessor"
    default_bounds: ClassVar[PixelBounds | None] = PixelBounds(32**2, 768 * 32**2, 24_576 * 32**2)

    def edges(self, bounds: PixelBounds, frames: int) -> tuple[int, int]:
        """The processor's `shortest_edge` and `longest_edge`, which here count the pixels of all frames together."""
        least, most = bounds.for_video(frames)
        return frames * least, frames * most

    def prefix_ids(self, inputs: VideoInputs) -> list[int]:
        """Token ids of the prompt up to the end of the last frame, with a time stamp before each grid frame."""
        before, _, _ = self._template()
        _, h, w = inputs.grid
        frame = [self._id(self.video_token)] * (h * w)
        ids: list[int] = []
        text = before.removesuffix(_START)
        for stamp in self.stamps(inputs):
            ids += self._encode(f"{text}<{stamp:.1f} seconds>{_START}") + frame
            text = _END
        return ids + self._encode(_END)

    def stamps(self, inputs: VideoInputs) -> list[float]:
        """Seconds that are written before each grid frame: halfway between its first and its last sampled frame."""
        size = self.config.vision_config.temporal_patch_size
        seconds = np.pad(inputs.seconds, (0, -len(inputs.seconds) % size), mode="edge").reshape(-1, size)
        return ((seconds[:, 0] + seconds[:, -1]) / 2).tolist()

    def position_ids(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """M-RoPE positions int64 [3, L] and the next free position, with one block for each grid frame.

        All tokens of a frame share one time position, because the time stamps already tell the time.
        """
        return mrope_positions(ids == self._id(self.video_token), (1, *inputs.grid[1:]))
