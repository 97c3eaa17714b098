"""Load LLaVA-Video and LLaVA-OneVision checkpoints in the layout of the original LLaVA code (lmms-lab on the hub).

These are OneVision models in another layout: a flat config.json (`model_type: llava`, `architectures:
[LlavaQwenForCausalLM]`) that names its vision tower without describing it, other names of weights, a text tokenizer
without a placeholder for the video, and neither a processor nor a chat template. This file supplies all of that in
memory; the checkpoint's files are not changed.

Sources: https://github.com/LLaVA-VL/LLaVA-NeXT (llava_arch.py, siglip_encoder.py, conversation.py `qwen_1_5`), and
convert_llava_onevision_weights_to_hf.py of transformers, which converts OneVision checkpoints on disk.
"""

import re
from math import isqrt
from pathlib import Path
from typing import Any

from sttm.errors import ModelError
from sttm.models.weights import Weights

_VISION = r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?"
# Names of weights: from the original code (keys, regular expressions) to transformers (values).
KEY_MAPPING = {
    _VISION: "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
# Settings of each supported vision tower that cannot be read from the shapes of its weights.
_TOWERS = {"google/siglip-so400m-patch14-384": {"num_attention_heads": 16, "hidden_act": "gelu_pytorch_tanh"}}
_LAYERS_USED = 26  # the original code deletes the last of SigLIP's 27 layers
_SUPPORTED = {"mm_projector_type": "mlp2x_gelu", "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}
_DEFAULT_IF_NULL = ("mm_spatial_pool_stride",)  # null means 2 in the original code; with other keys null it fails

VIDEO_TOKEN = "<video>"  # noqa: S105 (this is not a password)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}" + VIDEO_TOKEN + "\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def is_lmms_lab(config: dict[str, Any]) -> bool:
    """Whether a config.json has the original layout, which names the vision tower instead of describing it."""
    return "mm_vision_tower" in config and "vision_config" not in config


def convert_config(folder: Path, config: dict[str, Any]) -> Any:
    """The transformers config of a checkpoint in the original layout.

    Args:
        folder: the checkpoint; the shapes of its weights describe the vision tower.
        config: the content of its config.json.

    Raises:
        ModelError: the checkpoint differs from LLaVA-Video and LLaVA-OneVision in a way that is not supported.
    """
    from transformers import LlavaOnevisionConfig, Qwen2Config

    _check(folder, config)
    known = {*Qwen2Config().to_dict(), "rope_theta", "rope_scaling", "torch_dtype"}
    text = {key: value for key, value in config.items() if key in known}
    return LlavaOnevisionConfig(
        text_config={**text, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        vision_config=_vision_config(folder, config["mm_vision_tower"]),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        mm_newline_position=_newline_position(config),
    )


def load_tokenizer(folder: Path) -> Any:
    """The Qwen2 tokenizer, with the video placeholder and the chat template that the original code has in Python."""
    from transformers import AddedToken, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(VIDEO_TOKEN, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def video_processor(config: Any) -> Any:
    """The video processor of SigLIP, which resizes frames bicubically to a square and scales values to -1..1.

    Args:
        config: the result of `convert_config`.
    """
    from transformers import LlavaOnevisionVideoProcessor

    side = config.vision_config.image_size
    return LlavaOnevisionVideoProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )


def _check(folder: Path, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or []
    if "LlavaQwenForCausalLM" not in architectures:
        raise ModelError(
            f"{folder}: {', '.join(architectures) or 'no architecture'} in the original LLaVA layout is not supported, "
            "only LlavaQwenForCausalLM is; take a checkpoint in transformers' layout (llava-hf on the hub)"
        )
    if config["mm_vision_tower"] not in _TOWERS:
        raise ModelError(
            f"{folder}: vision tower {config['mm_vision_tower']!r} is not {', '.join(_TOWERS)}, the only one supported "
            "in the original LLaVA layout; take a checkpoint in transformers' layout (llava-hf on the hub)"
        )
    for key, expected in _SUPPORTED.items():
        given = config.get(key, expected)
        if given != expected and not (given is None and key in _DEFAULT_IF_NULL):
            raise ModelError(f"{folder}: {key} {config[key]!r} is not supported, only {expected!r} is")
    if config.get("add_faster_video"):
        raise ModelError(
            f"{folder}: add_faster_video (frames at two rates) is not supported; take a checkpoint without it"
        )


def _newline_position(config: dict[str, Any]) -> str:
    merge_type = config.get("mm_patch_merge_type") or "spatial_unpad"
    if "unpad" not in merge_type and "mm_newline_position" not in config:
        return "no_token"
    return str(config.get("mm_newline_position", "one_token"))


def _vision_config(folder: Path, tower: str) -> dict[str, Any]:
    shapes = {re.sub(_VISION, "", name): shape for name, shape in Weights(folder).shapes() if re.match(_VISION, name)}
    try:
        channels, _, _, patch = shapes["embeddings.patch_embedding.weight"]
        positions = shapes["embeddings.position_embedding.weight"][0]
        hidden = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise ModelError(
            f"{folder} has no weight {error.args[0]!r} of a vision tower; take a checkpoint that includes its tower"
        ) from error
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")}
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": channels,
        "intermediate_size": hidden,
        "num_hidden_layers": min(len(layers), _LAYERS_USED),
        "patch_size": patch,
        "image_size": isqrt(positions) * patch,
        "vision_use_head": False,
        **_TOWERS[tower],
    }
