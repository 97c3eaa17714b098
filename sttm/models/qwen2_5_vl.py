"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL with positions in absolute time and window attention in the vision tower.

Model doc: https://huggingface.co/docs/transformers/model_doc/qwen2_5_vl
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sttm.models.base import VideoInputs
from sttm.models.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """Adapter for `model_type: qwen2_5_vl`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def time_step(self, inputs: VideoInputs) -> float:
        """`tokens_per_second` times the seconds between two grid frames.

        A grid frame is two sampled frames: 1 s at 2 fps, so 2 positions with the published `tokens_per_second: 2`.
        The seconds are kept as a fraction, as in training, transformers 4 and 5.23. transformers 5.17 truncates them,
        so that below 1 s a grid frame all frames of a video share one position.
        """
        times = inputs.frame_seconds
        if len(times) < 2 or times[-1] <= times[0]:
            return 1.0
        return self.config.vision_config.tokens_per_second * float(times[-1] - times[0]) / (len(times) - 1)

    def segments(self, visual: Any, grid_thw: Tensor) -> dict[str, Any]:
        """Frames for the layers with full attention, and windows (8x8 patches, less at the border) for the others."""
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
