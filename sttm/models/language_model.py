"""The language model alone: all that answering needs. No vision tower is built or read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sttm.errors import ModelError
from sttm.models.attention import ATTENTION
from sttm.models.placement import Devices, as_devices, place_layers

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
        ModelError: a weight is missing or has another shape than the config says.
    """
    from transformers import AutoModel

    text_config = config.get_text_config()
    with torch.device("meta"):
        text = AutoModel.from_config(text_config, dtype=dtype, attn_implementation=ATTENTION)
        head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False, dtype=dtype)
    weights = _Weights(folder)
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
    return LanguageModel(text.eval().requires_grad_(False), head.eval().requires_grad_(False))


def _device_of(name: str, first: torch.device, layers: tuple[torch.device, ...]) -> torch.device:
    """Where a weight of the decoder goes, by its name within it."""
    part, _, rest = name.partition(".")
    if part == "layers":
        return layers[int(rest.split(".")[0])]
    return layers[-1] if part == "norm" else first


class _Weights:
    """Named tensors over all safetensors files of a folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._home = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)

    def has(self, names: tuple[str, ...]) -> bool:
        return any(name in self._home for name in names)

    def read(self, names: list[str] | tuple[str, ...], shape: torch.Size) -> Tensor:
        """The first tensor that exists under one of `names`."""
        for name in names:
            if name in self._home:
                tensor = self._home[name].get_tensor(name)
                if tensor.shape != shape:
                    raise ModelError(
                        f"{self._folder}: {name} has shape {tuple(tensor.shape)}, its config says {tuple(shape)}"
                    )
                return tensor
        raise ModelError(f"{self._folder} has no weight {names[0]!r} (nor under its older names)")
