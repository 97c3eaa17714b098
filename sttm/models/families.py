"""The list of supported model families. To add one, subclass `sttm.models.base.Family` and list the subclass here."""

from sttm.errors import ModelError
from sttm.models.base import Family
from sttm.models.llava_next_video import LlavaNextVideo
from sttm.models.llava_onevision import LlavaOnevision
from sttm.models.qwen2_5_vl import Qwen25VL
from sttm.models.qwen2_vl import Qwen2VL
from sttm.models.qwen3_vl import Qwen3VL

ADAPTERS: tuple[type[Family], ...] = (Qwen2VL, Qwen25VL, Qwen3VL, LlavaOnevision, LlavaNextVideo)
FAMILIES: dict[str, type[Family]] = {name: family for family in ADAPTERS for name in family.model_types}


def family_of(model_type: str, checkpoint: str) -> type[Family]:
    """The adapter for the `model_type` of a config.

    Args:
        model_type: the value in the checkpoint's config.json.
        checkpoint: name of the checkpoint, for the error message.

    Raises:
        ModelError: no adapter serves this `model_type`.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{checkpoint}: model_type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "To add one, subclass sttm.models.base.Family and list it in sttm.models.families.ADAPTERS"
        )
    return FAMILIES[model_type]
