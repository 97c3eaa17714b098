"""LLaVA-OneVision (arXiv 2408.03326) and LLaVA-Video (arXiv 2410.02713): SigLIP, 27x27 patches pooled to 14x14.

Model doc: https://huggingface.co/docs/transformers/model_doc/llava_onevision

The model has one learned separator, `image_newline`. The setting `mm_newline_position` of the checkpoint's config says
where it stands in a video. It comes from the original code (LLaVA-NeXT, llava_arch.py):

    one_token  once, after the last frame: LLaVA-OneVision, and the default of transformers
    grid       after every row of every frame: LLaVA-Video was trained with it
    frame      after every frame
    no_token   nowhere

Separators are prompt tokens like text: they are never merged and stay in every layer. So `grid` adds 14 tokens a frame
that no budget removes (1,792 tokens at 128 frames, beside 25,088 visual tokens). The paper counts visual tokens only.

The original code can put a sentence between video and question (`add_time_instruction`: "The video lasts for ...
seconds, and N frames are uniformly sampled from it. These frames are located at ..."). The chat templates of
transformers have no such sentence, and this adapter adds none. The prefix ends with the video, so you can write the
sentence in front of your question.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from sttm.errors import ModelError
from sttm.models.llava import Llava
from sttm.models.video_inputs import VideoInputs


class LlavaOnevision(Llava):
    """Adapter for `model_type: llava_onevision`."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    processor_class: ClassVar[str] = "LlavaOnevisionVideoProcessor"

    @property
    def tokens_per_side(self) -> int:
        """Half of the patches per side of a frame, rounded up."""
        vision = self.config.vision_config
        return -(-(vision.image_size // vision.patch_size) // 2)

    def is_cell(self, inputs: VideoInputs) -> Tensor:
        """bool [P]: False where a newline stands, see `mm_newline_position` above.

        Raises:
            ModelError: the config has an unknown `mm_newline_position`.
        """
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
            f"mm_newline_position {mode!r} in the checkpoint's config is not grid, frame, one_token or no_token; "
            "correct its config.json"
        )

    def project(self, model: Any, states: Tensor) -> Tensor:
        """Project the tower's states and then pool them bilinearly, in the order of the training: [F, S*S, C].

        transformers first makes the channels the slowest axis. The kernel for that layout has one thread for each
        *pixel* of the result, which is 196 threads for all frames and channels. With the channels as the fastest axis
        there is one thread for each value.
        """
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        maps = model.multi_modal_projector(states).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.interpolate(
            maps, size=(self.tokens_per_side, self.tokens_per_side), mode="bilinear"
        )
        return pooled.permute(0, 2, 3, 1).flatten(1, 2)

    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the vision tower and insert the newlines: embeddings [P, C], and no deepstack levels."""
        features, _ = super().encode(model, inputs)
        is_cell = self.is_cell(inputs).to(features.device)
        places = model.model.image_newline.to(features).expand(len(is_cell), -1).clone()
        places[is_cell] = features
        return places, ()


def _newline_after(cells: Tensor) -> Tensor:
    """Append one separator (False) to the last axis."""
    return torch.nn.functional.pad(cells, (0, 1), value=False)
