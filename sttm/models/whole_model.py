"""The whole multimodal model, vision tower and language model, as transformers builds it from a checkpoint."""

from typing import Any

import torch

from sttm.errors import ModelError
from sttm.models import attention
from sttm.models.placement import device_map
from sttm.models.weights import Weights


def read_model(
    weights: Weights,
    config: Any,
    dtype: torch.dtype,
    devices: tuple[torch.device, ...],
    key_mapping: dict[str, str] | None,
) -> Any:
    """Build a model: on the CPU for one device, or spread over several devices.

    Args:
        weights: the weights of the checkpoint.
        config: transformers config of the model.
        dtype: dtype of the loaded weights.
        devices: one device, or several over which the decoder layers are spread.
        key_mapping: regular expressions over names in the checkpoint, and what replaces them; None for names that
            transformers knows.

    Raises:
        ModelError: a weight is missing, a scale of an FP8 weight is damaged, or there are more devices than layers.
    """
    from transformers import AutoModelForImageTextToText

    is_spread = len(devices) > 1
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    # transformers would need kernels for FP8 weights, or would load them without their scales.
    state = weights.dequantised(dtype) if weights.are_fp8 else None
    model, report = type(empty).from_pretrained(
        None if state else weights.folder,
        state_dict=state,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation={"": "sdpa", "text_config": attention.ATTENTION},
        key_mapping=key_mapping,
        output_loading_info=True,
        device_map=device_map(empty, devices) if is_spread else None,
    )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{weights.folder} has no weight {missing[0]!r} ({len(missing)} are missing)")
    if is_spread:
        from accelerate.hooks import remove_hook_from_submodules

        # These hooks would move tensors around every module. The engine moves them only where the device changes.
        remove_hook_from_submodules(model)
    return model
