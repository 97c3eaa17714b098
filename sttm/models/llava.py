"""What the LLaVA families share: frames of one square size, pooled grids, 1-D positions.

Shapes: F frames, S the side of a frame's token grid after pooling, C hidden size of the language model.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sttm.models.base import Family, VideoInputs
from sttm.models.patch_embedding import LinearFrameEmbedding

# Frames in one pass of the vision tower, to bound its memory: 6 MB a frame and layer in SigLIP-so400m's MLP.
_FRAMES_A_PASS = 32


class Llava(Family):
    """Parent of the LLaVA adapters."""

    @property
    def video_token(self) -> str:
        return "<video>"

    @staticmethod
    def prepare(model: Any) -> None:
        """Replace one module of this one model's vision tower by a faster one with the same weights and outputs."""
        embeddings = model.model.vision_tower.embeddings
        embeddings.patch_embedding = LinearFrameEmbedding(embeddings.patch_embedding)

    @property
    @abstractmethod
    def tokens_per_side(self) -> int:
        """S, rows and columns of visual tokens a frame."""

    def preprocess(self, pixels: np.ndarray, seconds: np.ndarray) -> VideoInputs:
        """Resize to uint8 [F, 3, image_size, image_size] with the official processor; normalising comes later."""
        frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        batch = self.processor(
            videos=[frames], do_sample_frames=False, do_rescale=False, do_normalize=False, return_tensors="pt"
        )
        return VideoInputs(
            batch["pixel_values_videos"][0].numpy(),
            (len(frames), self.tokens_per_side, self.tokens_per_side),
            seconds,
            seconds,
        )

    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        pixels = self._normalised(inputs, model)
        return torch.cat([self.features(model, part) for part in pixels.split(_FRAMES_A_PASS)]), ()

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        """Embeddings [F*S*S, C] of normalised frames [F, 3, H, W], without separators."""
        return self.project(model.model, self._tower_states(model.model.vision_tower, pixels)).flatten(0, 1)

    @abstractmethod
    def project(self, model: Any, states: Tensor) -> Tensor:
        """The tower's states [F, side*side, C'] pooled and brought into the language model: [F, S*S, C]."""

    def _tower_states(self, tower: Any, pixels: Tensor) -> Tensor:
        """States [F, patches, C'] of the layers that `vision_feature_layer` names, through no layer behind them.

        The tower's own forward runs all its layers and a norm, and in transformers 5.17 keeps the states of each.
        """
        layers = tower.encoder.layers
        named = self.config.vision_feature_layer
        wanted = [at % (len(layers) + 1) for at in ([named] if isinstance(named, int) else named)]
        hidden = tower.embeddings(pixels)
        if hasattr(tower, "pre_layrnorm"):  # CLIP's, by transformers' name
            hidden = tower.pre_layrnorm(hidden)
        states = {0: hidden}
        for number, layer in enumerate(layers[: max(wanted)], start=1):
            hidden = layer(hidden, None)
            if number in wanted:
                states[number] = hidden
        chosen = torch.cat([states[at] for at in wanted], dim=-1) if len(wanted) > 1 else states[wanted[0]]
        return chosen[:, 1:] if self.config.vision_feature_select_strategy == "default" else chosen

    def position_ids(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """0, 1, 2, ..."""
        return torch.arange(len(ids), device=ids.device)[None], len(ids)

    def _normalised(self, inputs: VideoInputs, model: Any) -> Tensor:
        """Rescale and normalise on the model's device with the official processor's own arithmetic."""
        p = self.processor
        frames = inputs.pixels_on(model.device)
        frames = p.rescale_and_normalize(
            frames, p.do_rescale, p.rescale_factor, p.do_normalize, tuple(p.image_mean), tuple(p.image_std)
        )
        return frames.to(model.dtype)
