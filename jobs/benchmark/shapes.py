"""Real architectures with random weights, for benchmarks: the speed of real models without their checkpoints."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch

from sttm.models import attention
from sttm.models.base import Family
from sttm.models.families import family_of
from sttm.models.fp8 import require_fp8
from sttm.models.fp8_linear import fp8_blocks, use_fp8
from sttm.models.fused_modules import fuse
from sttm.models.placement import Devices, as_devices, place_model_layers
from sttm.models.processor import import_torchvision

_QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 1 << 20,  # the real models have 32,768; benchmarks may need more
}
_QWEN2_72B = {
    **_QWEN2_7B,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}


def _qwen2_vl(text: dict[str, Any]) -> tuple[Any, Any]:
    """The config of Qwen/Qwen2-VL-*-Instruct, and its video processor for frames of 392 x 392 pixels."""
    from transformers import Qwen2VLConfig, Qwen2VLVideoProcessor

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config = Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "num_heads": 16,
            "mlp_ratio": 4,
            "hidden_size": text["hidden_size"],
        },
    )
    size = {"shortest_edge": 392 * 392, "longest_edge": 392 * 392}
    return config, Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False)


def _llava_video(text: dict[str, Any]) -> tuple[Any, Any]:
    """The config of lmms-lab/LLaVA-Video-*-Qwen2 (SigLIP at 384 pixels, Qwen2), and its video processor."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionVideoProcessor

    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = LlavaOnevisionConfig(
        text_config={**text, "model_type": "qwen2", "rope_parameters": rope},
        vision_config=_SIGLIP_SO400M,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return config, LlavaOnevisionVideoProcessor()


SHAPES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2-vl-7b": partial(_qwen2_vl, _QWEN2_7B),
    "qwen2-vl-72b": partial(_qwen2_vl, _QWEN2_72B),
    "llava-video-7b": partial(_llava_video, _QWEN2_7B),
    "llava-video-72b": partial(_llava_video, _QWEN2_72B),
}


def build_shape(
    name: str, devices: Devices, dtype: torch.dtype = torch.bfloat16, is_fp8: bool = False
) -> tuple[Any, Family]:
    """Build a model with random weights directly on its devices, and its adapter without a tokenizer.

    Args:
        name: a key of `SHAPES`.
        devices: one device, or several over which the layers are spread; a 72B model has 145 GB of weights.
        dtype: dtype of the weights.
        is_fp8: whether the linear modules of vision blocks and decoder layers multiply in FP8. Each layer is rounded
            before the next one is made, so a 72B model takes 76 GB.

    Raises:
        ModelError: there are more devices than layers, or a device has no FP8.
    """
    for device in as_devices(devices) if is_fp8 else ():
        require_fp8(device)
    import_torchvision()
    attention.register()
    config, processor = SHAPES[name]()
    torch.manual_seed(0)
    model = _random_model(config, as_devices(devices), dtype, is_fp8)
    family = family_of(config.model_type, name)
    family.prepare(model)
    fuse(model)
    return model.eval().requires_grad_(False), family(config, tokenizer=None, processor=processor)


def _random_model(config: Any, devices: tuple[torch.device, ...], dtype: torch.dtype, is_fp8: bool) -> Any:
    """Build a model with one decoder layer on the first device, then add the other layers on their own devices."""
    from transformers import AutoModelForImageTextToText

    shallow = deepcopy(config)
    shallow.text_config.num_hidden_layers = 1
    shallow.text_config.layer_types = config.text_config.layer_types[:1]
    with devices[0]:
        model = AutoModelForImageTextToText.from_config(
            shallow, dtype=dtype, attn_implementation={"": "sdpa", "text_config": attention.ATTENTION}
        )
    for _, block in fp8_blocks(model) if is_fp8 else ():
        use_fp8(block)
    text = model.model.language_model
    depth = text.config.num_hidden_layers = config.text_config.num_hidden_layers
    text.config.layer_types = config.text_config.layer_types
    first = text.layers[0]
    places = place_model_layers(model, devices, repeats=depth)
    for number, device in enumerate(places[1:], start=1):
        with device:
            layer = type(first)(text.config, number).to(dtype)
        text.layers.append(layer.apply(text._init_weights))
        if is_fp8:
            use_fp8(layer)
    text.norm.to(places[-1])
    model.lm_head.to(places[-1])
    return model
