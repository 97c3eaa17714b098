"""The architecture of the built-in model, a Qwen2-VL with under 8 million parameters, and its checkpoint folder."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, Qwen2VLConfig

from sttm.models.processor import import_torchvision

FRAME_PIXELS = 392 * 392


def build_config(tokenizer: Any) -> Qwen2VLConfig:
    """The config: a vision tower of 4 layers × 192 and a language model of 8 layers × 256 with 2 key heads.

    The rotary base is small because M-RoPE gives the columns of an image the slowest frequencies. With Qwen2-VL's own
    base of 1,000,000, two columns of a 14 × 14 grid would hardly differ.

    Args:
        tokenizer: the tokenizer that gives the ids of the special tokens.
    """
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
    }
    vision = {"depth": 4, "embed_dim": 192, "num_heads": 6, "mlp_ratio": 4, "hidden_size": 256, "patch_size": 14}
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(config: Qwen2VLConfig) -> Any:
    """Build a `Qwen2VLForConditionalGeneration` with random float32 weights."""
    import_torchvision()  # must come before transformers imports torchvision
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration(config)


def save_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a whole Hugging Face checkpoint. The weights keep their dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=8
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    common = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "rescale_factor": 1 / 255,
        "resample": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        # Both bounds are equal, so that a frame of any size is resized to about the size of the training.
        "size": {"shortest_edge": FRAME_PIXELS, "longest_edge": FRAME_PIXELS},
    }
    image = {**common, "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    # Set explicitly, because versions of transformers differ in the default cap and in whether they sample frames.
    video = {**common, "video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2VLProcessor"}
    video |= {"do_sample_frames": False, "cap_pixels_per_frame": False}
    for name, values in (("preprocessor_config", image), ("video_preprocessor_config", video)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
