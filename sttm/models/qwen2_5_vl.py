"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL with time positions in seconds and window attention in the vision tower.

Model doc: https://huggingface.co/docs/transformers/model_doc/qwen2_5_vl
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sttm.models.qwen2_vl import Qwen2VL
from sttm.models.video_inputs import VideoInputs


class Qwen25VL(Qwen2VL):
    """Adapter for `model_type: qwen2_5_vl`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def time_step(self, inputs: VideoInputs) -> float:
        """`tokens_per_second` times the seconds between two grid frames.

        A grid frame is two sampled frames. At 2 fps it takes 1 s, which is 2 positions with the published
        `tokens_per_second: 2`. The seconds are a fraction, as in the training and in transformers 4 and 5.23.
        transformers 5.17 truncates them, so that all frames share one position if a grid frame takes less than 1 s.
        """
        times = inputs.frame_seconds
        if len(times) < 2 or times[-1] <= times[0]:
            return 1.0
        return self.config.vision_config.tokens_per_second * float(times[-1] - times[0]) / (len(times) - 1)

    def segments(self, visual: Any, grid_thw: Tensor) -> dict[str, Any]:
        """Bounds of frames, for the layers with full attention, and of windows, for the other layers.

        A window has 8x8 patches, and fewer at the border.
        """
        from transformers.vision_utils import get_vision_window_index

        index, bounds = get_vision_window_index(
            grid_thw, visual.spatial_merge_size, visual.window_size, visual.patch_size
        )
        windows = {
            "window_index": index.to(_device(visual)),
            "cu_window_seqlens": bounds,
            "max_window_seqlen": int(bounds.diff().max()),
        }
        return {**super().segments(visual, grid_thw), **windows}


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
