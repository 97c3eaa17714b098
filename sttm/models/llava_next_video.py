"""LLaVA-NeXT-Video (https://llava-vl.github.io/blog/2024-04-30-llava-next-video): CLIP, 24x24 patches pooled to 12x12.

Model doc: https://huggingface.co/docs/transformers/model_doc/llava_next_video

Its videos have no separators.
"""

from typing import Any, ClassVar

from torch import Tensor

from sttm.models.llava import Llava


class LlavaNextVideo(Llava):
    """Adapter for `model_type: llava_next_video`."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    processor_class: ClassVar[str] = "LlavaNextVideoVideoProcessor"

    @property
    def tokens_per_side(self) -> int:
        """Patches per side of a frame, divided by the stride of the pooling."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // self.config.spatial_pool_stride

    def project(self, model: Any, states: Tensor) -> Tensor:
        """Pool the tower's states and project them into the language model: [F, S*S, C]."""
        return model.multi_modal_projector(model.vision_resampler(states))
