"""The official video processors. They resize with torchvision, whose import needs a word (see `import_torchvision`)."""

from pathlib import Path
from typing import Any

import torch


def import_torchvision() -> None:
    """Import torchvision, also where its compiled operators cannot load.

    The registry's torchvision is built for CUDA; beside a CPU-only torch its operators stay away and the import dies on
    the missing schemas of two of them. Resizing needs none of them, so declaring the schemas is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        import torchvision  # noqa: F401


_kept_alive: list[Any] = []  # a Library undoes its definitions when it is collected


def load_video_processor(folder: Path) -> Any:
    """The checkpoint's own video processor."""
    import_torchvision()
    from transformers import AutoVideoProcessor

    return AutoVideoProcessor.from_pretrained(folder)
