"""Write a checkpoint folder with a real architecture and random weights, which loads like a downloaded one.

Tokenizer and chat template come from the built-in model. Its few token ids exist in the vocabulary of any model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sttm.models import attention
from sttm.models.checkpoint import BUILT_IN
from sttm.models.families import family_of
from sttm.models.processor import import_torchvision

_TINY_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def write_checkpoint(shape: Callable[[], tuple[Any, Any]], folder: Path, device: torch.device) -> Path:
    """Write the checkpoint, unless the folder holds one from an earlier run.

    Args:
        shape: makes config and video processor; one of `jobs.benchmark.shapes.SHAPES`.
        folder: the folder to write; a 7B model takes 15 GB in bfloat16.
        device: the device on which the weights are drawn.

    Returns:
        `folder`.
    """
    if (folder / "config.json").exists():
        return folder
    import_torchvision()
    attention.register()
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    config, processor = shape()
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN)
    video = family_of(config.model_type, str(folder))(config, tokenizer, processor).video_token
    if video not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [video]})
        tokenizer.chat_template = tokenizer.chat_template.replace(_TINY_VIDEO, video)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.config.eos_token_id = tokenizer.eos_token_id
    partial = folder.with_name(f"{folder.name}.partial")
    for part in (model, processor, tokenizer):
        part.save_pretrained(partial)
    partial.rename(folder)
    return folder
