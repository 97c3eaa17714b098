"""Checkpoint folders of the real architectures with small random weights: config, tokenizer, processor, safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sttm.models.processor import import_torchvision

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video")
QWEN_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'video' %}<video>{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ '\n' + c['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_SPECIAL = (*TEXT_SPECIAL, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
LLAVA_SPECIAL = (*TEXT_SPECIAL, "<image>", "<video>")
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {**PLAIN_ROPE, "mrope_section": [2, 3, 3]}


def make_tokenizer(
    special: tuple[str, ...] = QWEN_SPECIAL, template: str | None = QWEN_TEMPLATE, bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, so that cutting a prompt in the wrong place changes its ids.

    Args:
        bos: put <|endoftext|> before every text, as Llama's tokenizers do with their BOS.
    """
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ċ", "Ċ"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("s", "e"), ("Ġ", "se")]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    if bos:
        start = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|endoftext|>" if bos else None,
    )
    fast.chat_template = template
    return fast


def write_checkpoint(
    family: str, folder: Path, *, layers: int = 4, tied: bool = False, seed: int = 0, **settings: Any
) -> Path:
    """A checkpoint of one of FAMILIES: 2 key heads for 4 query heads, a few visual tokens a frame.

    Args:
        layers: decoder layers.
        tied: output head shares the embeddings.
        seed: of the weights.
        settings: replace values of the whole model's config, or of `text_config` or `vision_config` if a dict.
    """
    import_torchvision()
    from transformers import AutoModelForImageTextToText

    if family.startswith("qwen"):
        tokenizer = make_tokenizer()
    else:
        tokenizer = make_tokenizer(LLAVA_SPECIAL, LLAVA_TEMPLATE, bos=family == "llava_next_video")
    config = make_config(family, tokenizer, layers, tied, settings)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_video_processor(family).save_pretrained(folder)
    return folder


def write_qwen2_vl(folder: Path, *, layers: int = 4, tied: bool = False, seed: int = 0) -> Path:
    """A Qwen2-VL checkpoint; frames of up to 8x8 tokens."""
    return write_checkpoint("qwen2_vl", folder, layers=layers, tied=tied, seed=seed)


def make_config(family: str, tokenizer: PreTrainedTokenizerFast, layers: int, tied: bool, settings: dict) -> Any:
    """The transformers config of `write_checkpoint`."""
    import transformers

    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": tied,
        **_TEXT[family],
        **settings.pop("text_config", {}),
    }
    vision = {**_VISION[family], **settings.pop("vision_config", {})}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKENS[family.split("_")[0]].items()}
    kind = getattr(transformers, _CONFIGS[family])
    return kind(text_config=text, vision_config=vision, tie_word_embeddings=tied, **{**ids, **settings})


def make_video_processor(family: str) -> Any:
    """The official video processor, for the small towers."""
    import transformers

    pixels = 28 * 28 if family != "qwen3_vl" else 8 * 32 * 32  # Qwen3-VL counts the pixels of all frames together
    if family.startswith("qwen"):
        kind = transformers.Qwen3VLVideoProcessor if family == "qwen3_vl" else transformers.Qwen2VLVideoProcessor
        return kind(size={"shortest_edge": pixels * 4, "longest_edge": pixels * 64}, cap_pixels_per_frame=False)
    if family == "llava_onevision":
        return transformers.LlavaOnevisionVideoProcessor(size={"height": 98, "width": 98})
    return transformers.LlavaNextVideoVideoProcessor(size={"shortest_edge": 98}, crop_size={"height": 98, "width": 98})


def write_lmms_lab(source: Path, folder: Path, **settings: Any) -> Path:
    """A `llava_onevision` checkpoint rewritten in the layout of the original LLaVA code, as lmms-lab publishes it."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(source).to_dict()
    text = config["text_config"]
    theta = text.pop("rope_parameters")["rope_theta"]
    original = {
        **text,
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "rope_theta": theta,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_spatial_pool_mode": "bilinear",
        "mm_vision_select_layer": -2,
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[384, 384], [384, 768]],
        "image_token_index": 151646,
        "tokenizer_padding_side": "right",
        "transformers_version": "4.40.0.dev0",
        "use_mm_proj": True,
        "vision_tower_pretrained": None,
        **settings,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(original))
    weights = AutoModelForImageTextToText.from_pretrained(source).state_dict()
    save_file({_original_name(name): tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    make_tokenizer(TEXT_SPECIAL, None).save_pretrained(folder)
    return folder


def _original_name(name: str) -> str:
    for ours, theirs in (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _spread(model: torch.nn.Module) -> None:
    """Widen the weights, so that logits differ enough for a comparison to mean something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)


_CONFIGS = {
    "qwen2_vl": "Qwen2VLConfig",
    "qwen2_5_vl": "Qwen2_5_VLConfig",
    "qwen3_vl": "Qwen3VLConfig",
    "llava_onevision": "LlavaOnevisionConfig",
    "llava_next_video": "LlavaNextVideoConfig",
}
_TOKENS = {
    "qwen2": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
    "llava": {"image_token_index": "<image>", "video_token_index": "<video>"},
}
_TOKENS["qwen3"] = _TOKENS["qwen2"]
_TEXT: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"rope_parameters": MROPE},
    "qwen2_5_vl": {"rope_parameters": MROPE},
    "qwen3_vl": {"rope_parameters": {**MROPE, "mrope_interleaved": True}, "head_dim": 16},
    "llava_onevision": {"rope_parameters": PLAIN_ROPE, "model_type": "qwen2"},
    "llava_next_video": {"rope_parameters": PLAIN_ROPE, "model_type": "llama"},
}
_TOWER = {"hidden_size": 32, "intermediate_size": 64}
_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "patch_size": 14},
    "qwen2_5_vl": {
        **_TOWER,
        "depth": 3,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 56,  # 2x2 tokens, so that small frames have whole windows and border ones
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
    "qwen3_vl": {
        **_TOWER,
        "depth": 4,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 16,
        "deepstack_visual_indexes": [0, 1, 2],
        "num_position_embeddings": 64,
    },
    "llava_onevision": {
        **_TOWER,
        "model_type": "siglip_vision_model",
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "image_size": 98,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "llava_next_video": {
        **_TOWER,
        "model_type": "clip_vision_model",
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 98,
        "patch_size": 14,
        "projection_dim": 16,
    },
}
