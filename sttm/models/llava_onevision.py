"""LLaVA-OneVision (arXiv 2408.03326) and LLaVA-Video (arXiv 2410.02713): SigLIP frames, 27x27 pooled to 14x14.

Model doc: https://huggingface.co/docs/transformers/model_doc/llava_onevision

The model has one learned separator, `image_newline`. Where it stands in a video is the setting `mm_newline_position` of
the original code (LLaVA-NeXT, llava_arch.py), read here from the checkpoint's config:

    one_token  once, after the last frame: OneVision, and all that transformers knows; taken where the config is silent
    grid       after every row of every frame: what LLaVA-Video was trained with
    frame      after every frame
    no_token   nowhere

Separators are prompt tokens like text: never merged, kept in every layer. So `grid` adds 14 tokens a frame that no
budget removes (1,792 at 128 frames beside 25,088 visual ones); the paper counts visual tokens only.

The original code can put a sentence between video and question (`add_time_instruction`: "The video lasts for ...
seconds, and N frames are uniformly sampled from it. These frames are located at ..."). transformers' chat templates
have no such sentence and none is added here: the prefix ends with the video, so who wants it writes it in front of the
question.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from sttm.errors import ModelError
from sttm.models.base import VideoInputs
from sttm.models.llava import Llava


class LlavaOnevision(Llava):
    """Adapter for `model_type: llava_onevision`."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    processor_class: ClassVar[str] = "LlavaOnevisionVideoProcessor"

    @property
    def tokens_per_side(self) -> int:
        vision = self.config.vision_config
        return -(-(vision.image_size // vision.patch_size) // 2)

    def is_cell(self, inputs: VideoInputs) -> Tensor:
        t, h, w = inputs.grid
        cells = torch.ones(t, h, w, dtype=torch.bool)
        mode = getattr(self.config, "mm_newline_position", "one_token")
        match mode:
            case "grid":
                return _newline_after(cells).flatten()
            case "frame":
                return _newline_after(cells.flatten(1)).flatten()
            case "one_token":
                return _newline_after(cells.flatten())
            case "no_token":
                return cells.flatten()
        raise ModelError(
            f"mm_newline_position {mode!r} in the checkpoint's config is not grid, frame, one_token or no_token"
        )

    def project(self, model: Any, states: Tensor) -> Tensor:
        """Bilinear pooling after the projector, as in training.

        transformers makes the channels the slowest axis first, whose kernel has one thread a *pixel* of the result, 196
        for all frames and channels; with the channels left as the fastest axis there is one a value.
        """
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        maps = model.multi_modal_projector(states).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.interpolate(
            maps, size=(self.tokens_per_side, self.tokens_per_side), mode="bilinear"
        )
        return pooled.permute(0, 2, 3, 1).flatten(1, 2)

    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        features, _ = super().encode(model, inputs)
        is_cell = self.is_cell(inputs).to(features.device)
        places = model.model.image_newline.to(features).expand(len(is_cell), -1).clone()
        places[is_cell] = features
        return places, ()


def _newline_after(cells: Tensor) -> Tensor:
    """One separator at the end of the last axis."""
    return torch.nn.functional.pad(cells, (0, 1), value=False)
