"""Load the official video processor of a checkpoint. It resizes with torchvision, which is imported first."""

import json
from pathlib import Path
from typing import Any

import torch


def import_torchvision() -> None:
    """Import torchvision, even if its compiled operators cannot be loaded.

    The torchvision on PyPI is built for CUDA. Beside a CPU-only torch its operators cannot be loaded, and the import
    fails because the schemas of two operators are missing. Resizing needs no operator, so it is enough to declare these
    two schemas.
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


_kept_alive: list[Any] = []  # a Library removes its definitions when it is garbage collected


def load_video_processor(folder: Path, kind: str) -> Any:
    """Load a video processor with the checkpoint's settings for videos or, if it has none, its settings for images.

    AutoVideoProcessor is not used: it derives the class from the name of the image processor, and never returns for a
    LLaVA-NeXT-Video checkpoint that names the image processor of LLaVA-NeXT.

    Args:
        folder: the checkpoint.
        kind: name of the processor class in transformers.
    """
    import_torchvision()
    import transformers

    processor_class = getattr(transformers, kind)
    settings, _ = processor_class.get_video_processor_dict(str(folder))
    # Set explicitly, because the default of transformers is about to change, which would change the grids of videos.
    is_capped = bool(settings.get("cap_pixels_per_frame"))
    return processor_class.from_dict(settings, cap_pixels_per_frame=is_capped)


def describes_videos(folder: Path) -> bool:
    """Whether a checkpoint says how videos are preprocessed; some describe images only."""
    if (folder / "video_preprocessor_config.json").exists():
        return True
    path = folder / "processor_config.json"
    return path.exists() and "video_processor" in json.loads(path.read_text("utf-8"))
