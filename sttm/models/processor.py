"""The official video processors. They resize with torchvision, whose import needs a word (see `import_torchvision`)."""

import json
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


def load_video_processor(folder: Path, kind: str) -> Any:
    """A checkpoint's video processor, from what it says of videos or, where it says nothing, of images.

    Args:
        folder: the checkpoint.
        kind: transformers' class. Not AutoVideoProcessor, which derives one from the image processor's class and loops
            for ever where a checkpoint of LLaVA-NeXT-Video names LLaVA-NeXT's.
    """
    import_torchvision()
    import transformers

    processor_class = getattr(transformers, kind)
    settings, _ = processor_class.get_video_processor_dict(str(folder))
    # Where a checkpoint is silent, transformers' default is about to change, and the grids of its videos with it.
    is_capped = bool(settings.get("cap_pixels_per_frame"))
    return processor_class.from_dict(settings, cap_pixels_per_frame=is_capped)


def describes_videos(folder: Path) -> bool:
    """Whether a checkpoint says how videos are preprocessed, or images only."""
    if (folder / "video_preprocessor_config.json").exists():
        return True
    path = folder / "processor_config.json"
    return path.exists() and "video_processor" in json.loads(path.read_text("utf-8"))
