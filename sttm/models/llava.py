"""The common part of the LLaVA adapters: square frames of one size, pooled token grids, and 1-D positions.

Shapes: F frames, S x S visual tokens of a frame after pooling, C hidden size of the language model, C' of the tower.
"""

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sttm.models.base import Family
from sttm.models.frame_resizing import FrameResizing
from sttm.models.patch_embedding import LinearFrameEmbedding
from sttm.models.video_inputs import VideoInputs

# Frames in one pass of the vision tower. This bounds its memory: the MLP of SigLIP-so400m takes 6 MB for each frame.
_FRAMES_A_PASS = 32


class Llava(Family):
    """Parent of the LLaVA adapters."""

    @property
    def video_token(self) -> str:
        return "<video>"

    @staticmethod
    def prepare(model: Any) -> None:
        """Replace the patch embedding by a faster module with the same weights and outputs."""
        embeddings = model.model.vision_tower.embeddings
        embeddings.patch_embedding = LinearFrameEmbedding(embeddings.patch_embedding)

    @property
    @abstractmethod
    def tokens_per_side(self) -> int:
        """S: a frame has S rows and S columns of visual tokens."""

    def resizing(self, frames: int, height: int, width: int) -> FrameResizing:
        """Ask the official processor, with a frame that has a shape and no pixels."""
        p = self.processor
        frame = torch.empty((1, 3, height, width), dtype=torch.uint8, device="meta")
        resized = self._shape(self._processed(frame, do_center_crop=False))
        if not p.do_center_crop:
            return FrameResizing(resized, resized, p.resample)
        crop = partial(self._processed, do_resize=False)
        return FrameResizing(self._shape(self._processed(frame)), resized, p.resample, crop)

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """All frames have the same square of tokens."""
        return self.tokens_per_side, self.tokens_per_side

    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the vision tower over the frames, a few at a time: embeddings [F*S*S, C], and no deepstack levels."""
        pixels = self._normalised(inputs, model)
        features = torch.cat([self.features(model, part) for part in pixels.split(_FRAMES_A_PASS)])
        return inputs.for_all_frames(features), ()

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        """Embeddings [F*S*S, C] of normalised frames [F, 3, H, W], without separators."""
        return self.project(model.model, self._tower_states(model.model.vision_tower, pixels)).flatten(0, 1)

    @abstractmethod
    def project(self, model: Any, states: Tensor) -> Tensor:
        """Pool the tower's states [F, patches, C'] and project them into the language model: [F, S*S, C]."""

    def _tower_states(self, tower: Any, pixels: Tensor) -> Tensor:
        """Hidden states [F, patches, C'] of the layers that `vision_feature_layer` names; later layers are not run.

        The tower's own forward would run all layers and a norm, and in transformers 5.17 it keeps the states of every
        layer.
        """
        layers = tower.encoder.layers
        named = self.config.vision_feature_layer
        wanted = [at % (len(layers) + 1) for at in ([named] if isinstance(named, int) else named)]
        hidden = tower.embeddings(pixels)
        if hasattr(tower, "pre_layrnorm"):  # CLIP has this norm, and transformers spells its name so
            hidden = tower.pre_layrnorm(hidden)
        states = {0: hidden}
        for number, layer in enumerate(layers[: max(wanted)], start=1):
            hidden = layer(hidden, None)
            if number in wanted:
                states[number] = hidden
        chosen = torch.cat([states[at] for at in wanted], dim=-1) if len(wanted) > 1 else states[wanted[0]]
        return chosen[:, 1:] if self.config.vision_feature_select_strategy == "default" else chosen

    def position_ids(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """Number all tokens 0, 1, 2, ... on one axis: int64 [1, L] and L."""
        return torch.arange(len(ids), device=ids.device)[None], len(ids)

    def _processed(self, frames: Tensor, **steps: bool) -> Tensor:
        """The official processor's frames uint8 [F, 3, H', W'] before normalising, with some of its steps changed."""
        batch = self.processor(videos=[frames], do_sample_frames=False, do_rescale=False, do_normalize=False, **steps)
        return batch["pixel_values_videos"][0]

    @staticmethod
    def _shape(frames: Tensor) -> tuple[int, int]:
        return frames.shape[-2], frames.shape[-1]

    def _normalised(self, inputs: VideoInputs, model: Any) -> Tensor:
        """Normalise the frames to be encoded on the model's device, by a method of the official processor."""
        p = self.processor
        frames = p.rescale_and_normalize(
            inputs.frames_to_encode(model.device, self.frames_a_token).permute(0, 3, 1, 2),
            *(p.do_rescale, p.rescale_factor, p.do_normalize, tuple(p.image_mean), tuple(p.image_std)),
        )
        return frames.to(model.dtype)
