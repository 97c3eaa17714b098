"""Checkpoint folders rewritten as their authors published them: older configs, weight names, templates and files."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

# Reads text only, as in tokenizer_config.json of Qwen2.5-VL; a list of contents is a TypeError.
TEXT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_OLD_NAMES = {
    "qwen2_vl": ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")),
    "qwen3_vl": (),
    "llava": (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
        (r"^model\.", ""),
    ),
}
_OLD_NAMES["qwen2_5_vl"] = _OLD_NAMES["qwen2_vl"]
_OLD_NAMES["llava_onevision"] = _OLD_NAMES["llava_next_video"] = _OLD_NAMES["llava"]
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    **_CLIP,
}
_FRAMES = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "do_pad": True}
_PREPROCESSORS = {
    "qwen2_vl": _QWEN_IMAGES,
    "qwen2_5_vl": _QWEN_IMAGES,
    "qwen3_vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **_HALVES,
    },
    "llava_onevision": {
        **_FRAMES,
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "image_grid_pinpoints": [[98, 98]],
        "resample": 3,
        "size": {"height": 98, "width": 98},
        **_CLIP,
    },
    "llava_next_video": {
        **_FRAMES,
        "image_processor_type": "LlavaNextImageProcessor",  # not ...Video...
        "processor_class": "LlavaNextVideoProcessor",
        "image_grid_pinpoints": [[98, 196]],
        "do_center_crop": True,
        "crop_size": {"height": 98, "width": 98},
        "resample": 3,
        "size": {"shortest_edge": 98},
        **_CLIP,
    },
}


def write_published(source: Path, folder: Path) -> Path:
    """A checkpoint of `write_checkpoint` in the layout of the first release of its family.

    Old weight names in shards with an index, a config of its time, two end tokens, the vision template in
    chat_template.json beside one for text in tokenizer_config.json. Only Qwen3-VL says how it takes videos.
    """
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    family = config["model_type"]
    weights = {_renamed(name, family): x for name, x in load_file(source / "model.safetensors").items()}
    _write_shards(weights, folder)
    _write(folder / "config.json", _flat(config) if family in ("qwen2_vl", "qwen2_5_vl") else _nested(config))
    _write(folder / "preprocessor_config.json", _PREPROCESSORS[family])
    if family == "qwen3_vl":
        shutil.copy(source / "video_preprocessor_config.json", folder)
    shutil.copy(source / "tokenizer.json", folder)
    # No Llama tokenizer: transformers 5.17 would give it that model's way of cutting words.
    kind = "PreTrainedTokenizerFast" if family == "llava_next_video" else "Qwen2Tokenizer"
    write_tokenizer_parts(source, folder, tokenizer_class=kind, chat_template=TEXT_TEMPLATE)
    _write(folder / "chat_template.json", {"chat_template": (source / "chat_template.jinja").read_text()})
    ends = [token["id"] for token in _added(source) if token["content"] in ("<|im_end|>", "<|endoftext|>")]
    _write(folder / "generation_config.json", {"eos_token_id": ends, "do_sample": True, "top_k": 1})
    return folder


def write_tokenizer_parts(source: Path, folder: Path, **settings: Any) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, which are enough for a Qwen2 tokenizer."""
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *pairs)) + "\n")
    _write(folder / "vocab.json", model["vocab"])
    own = json.loads((source / "tokenizer_config.json").read_text())
    added = {str(token.pop("id")): token for token in _added(source)}
    tokens = {key: own.get(key) for key in ("bos_token", "eos_token", "pad_token")}
    _write(folder / "tokenizer_config.json", {**tokens, "added_tokens_decoder": added, **settings})


def _added(source: Path) -> list[dict[str, Any]]:
    return list(json.loads((source / "tokenizer.json").read_text())["added_tokens"])


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


def _renamed(name: str, family: str) -> str:
    for ours, theirs in _OLD_NAMES[family]:
        if re.match(ours, name):
            return re.sub(ours, theirs, name)
    return name


def _write_shards(weights: dict[str, Tensor], folder: Path, shards: int = 3) -> None:
    homes = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(weights)}
    for file in set(homes.values()):
        part = {name: x for name, x in weights.items() if homes[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": 0}, "weight_map": homes})


def _old_text(text: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings as two keys, the dtype under its old name, no kinds of layers."""
    rope = dict(text["rope_parameters"])
    old = {key: x for key, x in text.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    old |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": "bfloat16"}
    return old | ({"rope_scaling": rope} if len(rope) > 1 else {})


def _nested(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "text_config": _old_text(config["text_config"]), "torch_dtype": "bfloat16", "dtype": None}


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen2-VL's: the language model's settings lie beside the vision tower's."""
    text = _old_text(config["text_config"])
    sections = text.pop("rope_scaling")["mrope_section"]
    vision = {key: x for key, x in config["vision_config"].items() if key not in ("in_channels", "dtype")}
    return {
        **text,
        **{key: config[key] for key in config if key.endswith("_token_id")},
        "architectures": config["architectures"],
        "model_type": config["model_type"],
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "tie_word_embeddings": config["tie_word_embeddings"],
        "vision_config": {**vision, "in_chans": 3, "spatial_patch_size": 14},
    }
