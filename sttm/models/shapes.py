"""Real architectures with random weights, for benchmarks: no checkpoint, the true arithmetic."""

from collections.abc import Callable
from typing import Any

import torch

from sttm.models import attention
from sttm.models.base import Family
from sttm.models.families import family_of
from sttm.models.processor import import_torchvision

_QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
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


def _qwen2_vl_7b() -> tuple[Any, Any]:
    """Qwen/Qwen2-VL-7B-Instruct's config, and its video processor at 392 x 392 pixels a frame."""
    from transformers import Qwen2VLConfig, Qwen2VLVideoProcessor

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config = Qwen2VLConfig(
        text_config={**_QWEN2_7B, "rope_parameters": rope},
        vision_config={"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584},
    )
    size = {"shortest_edge": 392 * 392, "longest_edge": 392 * 392}
    return config, Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False)


def _llava_video_7b() -> tuple[Any, Any]:
    """lmms-lab/LLaVA-Video-7B-Qwen2's shape: SigLIP at 384 pixels, 27x27 pooled to 14x14, a Qwen2-7B."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionVideoProcessor

    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = LlavaOnevisionConfig(
        text_config={**_QWEN2_7B, "model_type": "qwen2", "rope_parameters": rope},
        vision_config=_SIGLIP_SO400M,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return config, LlavaOnevisionVideoProcessor()


SHAPES: dict[str, Callable[[], tuple[Any, Any]]] = {"qwen2-vl-7b": _qwen2_vl_7b, "llava-video-7b": _llava_video_7b}


def build_shape(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Family]:
    """A model of this shape with random weights on `device`, and its adapter (without a tokenizer)."""
    import_torchvision()
    attention.register()
    from transformers import AutoModelForImageTextToText

    config, processor = SHAPES[name]()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation={"": "sdpa", "text_config": attention.ATTENTION}
        )
    family = family_of(config.model_type, name)
    family.prepare(model)
    return model.eval().requires_grad_(False), family(config, tokenizer=None, processor=processor)
