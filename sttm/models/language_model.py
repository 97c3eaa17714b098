"""The language model without the vision tower, which is all that answering from a stored cache needs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sttm.errors import ModelError
from sttm.models.attention import ATTENTION
from sttm.models.fp8_linear import use_fp8
from sttm.models.fused_modules import fuse
from sttm.models.placement import Devices, as_devices, place_layers
from sttm.models.weights import Weights

# Checkpoints of different age and family store the same weight under these prefixes and names.
_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "language_model.")
_HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight")


@dataclass(frozen=True)
class LanguageModel:
    """Decoder layers and output head.

    Attributes:
        text: the decoder, with `embed_tokens`, `layers`, `rotary_emb`, `norm` and `config`.
        head: linear module from hidden states to logits.
    """

    text: Any
    head: nn.Module

    @staticmethod
    def of(model: Any) -> "LanguageModel":
        """The language model inside a whole multimodal model of transformers; nothing is copied."""
        return LanguageModel(model.model.language_model, model.lm_head)

    @property
    def device(self) -> torch.device:
        """The device of the embeddings. Token ids must lie there, and `logits` returns its result there."""
        return self.text.embed_tokens.weight.device

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """The device of each decoder layer. They differ from `device` if the model is spread over several GPUs."""
        return tuple(next(layer.parameters()).device for layer in self.text.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.text.embed_tokens.weight.dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply final norm and output head: hidden states [..., C] -> float32 logits [..., vocabulary]."""
        normed = self.text.norm(hidden.to(self.text.norm.weight.device))
        return self.head(normed.to(next(self.head.parameters()).device)).float().to(self.device)


def load_language_model(
    weights: Weights, config: Any, dtype: torch.dtype, devices: Devices, is_fp8: bool = False
) -> LanguageModel:
    """Read only the language model of a multimodal checkpoint.

    Args:
        weights: the weights of the checkpoint.
        config: transformers config of the whole model.
        dtype: dtype of the loaded weights and of the arithmetic.
        devices: one device, or several over which the layers are spread (see `sttm.models.placement`).
        is_fp8: whether the linear modules of the decoder layers multiply in FP8. Each layer is rounded before the next
            one is read, so `devices` never hold them all in `dtype`.

    Raises:
        ModelError: a weight is missing, or has another shape than the config says; or there are more devices than
            layers.
    """
    from transformers import AutoModel

    text_config = config.get_text_config()
    with torch.device("meta"):
        text = AutoModel.from_config(text_config, dtype=dtype, attn_implementation=ATTENTION)
        head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False, dtype=dtype)
    is_own_head = weights.has(_HEAD_NAMES)
    devices = as_devices(devices)
    layers = place_layers(text, head if is_own_head else None, devices)
    for name, device in (("embed_tokens", devices[0]), ("norm", layers[-1])):
        _fill(getattr(text, name), name, weights, dtype, device)
    for number, (layer, device) in enumerate(zip(text.layers, layers, strict=True)):
        name = f"layers.{number}"
        _fill(layer, name, weights, dtype, device)
        if is_fp8:
            use_fp8(layer, name, weights.fp8_source(text_names), device)
    # The buffers of the rotary embedding are not in the checkpoint; a new module computes them.
    text.rotary_emb = type(text.rotary_emb)(config=text_config).to(devices[0])
    if is_own_head:
        head.weight = nn.Parameter(weights.read(_HEAD_NAMES, head.weight.shape, layers[-1]).to(dtype))
    elif getattr(config, "tie_word_embeddings", False) or getattr(text_config, "tie_word_embeddings", False):
        head.weight = text.embed_tokens.weight
    else:
        raise ModelError(
            f"{weights.folder} has no lm_head.weight, and its config does not tie the output head to the embeddings; "
            "the checkpoint is incomplete, copy it again"
        )
    fuse(text)
    return LanguageModel(text.eval().requires_grad_(False), head.eval().requires_grad_(False))


def text_names(name: str) -> list[str]:
    """The names that checkpoints may use for a weight of the decoder, such as `layers.3.mlp.up_proj.weight`."""
    return [prefix + name for prefix in _TEXT_PREFIXES]


def _fill(module: nn.Module, prefix: str, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
    """Load the weights of a part of the decoder, which is called `prefix` there, onto a device."""
    state = {
        name: weights.read(text_names(f"{prefix}.{name}"), expected.shape, device).to(dtype)
        for name, expected in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)
