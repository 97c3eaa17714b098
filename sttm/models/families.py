"""Which adapter serves which checkpoint. To add a family: subclass `sttm.models.base.Family`, list it here."""

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
    """The adapter for a config's `model_type`.

    Raises:
        ModelError: there is none; names the `checkpoint`, the supported types and how to add one.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{checkpoint}: model_type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "To add one, subclass sttm.models.base.Family and list it in sttm.models.families.ADAPTERS"
        )
    return FAMILIES[model_type]
