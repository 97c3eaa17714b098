"""The language model alone: all that answering needs. No vision tower is built or read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttm.errors import ModelError
from sttm.models.attention import ATTENTION
from sttm.models.fused_modules import fuse
from sttm.models.placement import Devices, as_devices, place_layers
from sttm.models.weights import Weights

# Where the same weight lives in checkpoints of different age and family.
_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "language_model.")
_HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight")


@dataclass(frozen=True)
class LanguageModel:
    """Decoder stack and output head; `text` has embed_tokens, layers, rotary_emb, norm and config."""

    text: Any
    head: nn.Module

    @staticmethod
    def of(model: Any) -> "LanguageModel":
        """The language model inside a full multimodal model; nothing is copied."""
        return LanguageModel(model.model.language_model, model.lm_head)

    @property
    def device(self) -> torch.device:
        """Where embeddings are, so token ids go there, and logits come from there."""
        return self.text.embed_tokens.weight.device

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each decoder layer is: not all on `device` where the model is larger than one GPU."""
        return tuple(next(layer.parameters()).device for layer in self.text.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.text.embed_tokens.weight.dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] after the last layer -> float32 logits [..., vocabulary]."""
        normed = self.text.norm(hidden.to(self.text.norm.weight.device))
        return self.head(normed.to(next(self.head.parameters()).device)).float().to(self.device)


def load_language_model(folder: Path, config: Any, dtype: torch.dtype, devices: Devices) -> LanguageModel:
    """Read only the language model's weights of a multimodal checkpoint.

    Args:
        folder: checkpoint folder with safetensors.
        config: the whole model's transformers config.
        dtype: arithmetic, and dtype of the loaded weights.
        devices: where to put them; the layers are spread over several, see `sttm.models.placement`.

    Raises:
        ModelError: a weight is missing, is quantised, or has another shape than the config says.
    """
    from transformers import AutoModel

    text_config = config.get_text_config()
    with torch.device("meta"):
        text = AutoModel.from_config(text_config, dtype=dtype, attn_implementation=ATTENTION)
        head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False, dtype=dtype)
    weights = Weights(folder)
    is_own_head = weights.has(_HEAD_NAMES)
    devices = as_devices(devices)
    layers = place_layers(text, head if is_own_head else None, devices)
    state = {}
    for name, expected in text.state_dict().items():
        tensor = weights.read([prefix + name for prefix in _TEXT_PREFIXES], expected.shape)
        state[name] = tensor.to(_device_of(name, devices[0], layers), dtype)
    text.load_state_dict(state, assign=True)
    # Its buffers are computed, not stored.
    text.rotary_emb = type(text.rotary_emb)(config=text_config).to(devices[0])
    if is_own_head:
        head.weight = nn.Parameter(weights.read(_HEAD_NAMES, head.weight.shape).to(layers[-1], dtype))
    elif getattr(config, "tie_word_embeddings", False) or getattr(text_config, "tie_word_embeddings", False):
        head.weight = text.embed_tokens.weight
    else:
        raise ModelError(f"{folder} has no lm_head.weight, and its config does not tie it to the embeddings")
    fuse(text)
    return LanguageModel(text.eval().requires_grad_(False), head.eval().requires_grad_(False))


def _device_of(name: str, first: torch.device, layers: tuple[torch.device, ...]) -> torch.device:
    """Where a weight of the decoder goes, by its name within it."""
    part, _, rest = name.partition(".")
    if part == "layers":
        return layers[int(rest.split(".")[0])]
    return layers[-1] if part == "norm" else first
