"""Open a checkpoint folder or hub repository, load its parts, and compute the digests that identify it.

Weights are read from safetensors files only, and code from a checkpoint is never run. So an untrusted checkpoint can
give wrong answers, but it cannot execute anything.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import blake3
import torch
from pydantic import Field
from torch import nn

from sttm.errors import ConfigError, ModelError
from sttm.models import attention, lmms_lab
from sttm.models.base import Family
from sttm.models.families import family_of
from sttm.models.fp8 import require_fp8
from sttm.models.fp8_linear import fp8_blocks, use_fp8
from sttm.models.fp8_scheme import Fp8Scheme, read_scheme
from sttm.models.fused_modules import fuse
from sttm.models.language_model import LanguageModel, load_language_model, text_names
from sttm.models.pixel_bounds import PixelBounds
from sttm.models.placement import Devices, as_devices
from sttm.models.processor import describes_videos, import_torchvision, load_video_processor
from sttm.models.weights import Weights
from sttm.models.whole_model import read_model
from sttm.settings import Settings

BUILT_IN = Path(__file__).parent / "tiny"
BUILT_IN_NOTICE = (
    "The built-in model knows coloured shapes only; its answers about real film mean nothing. "
    "For real video index with a real checkpoint: --config qwen2_5_vl_7b, or --set model.path=FOLDER."
)

Dtype = Literal["bfloat16", "float16", "float32", "fp8"]


class ModelConfig(Settings):
    """Which checkpoint is used, and in which arithmetic.

    Attributes:
        path: a folder, a Hugging Face repository id, or `tiny` for the built-in model. None means the built-in model
            when videos are indexed, and the model that made the cache when questions are asked.
        revision: branch, tag or commit of a hub repository; None takes the default branch.
        dtype: arithmetic of the language model and the vision tower. `fp8` is bfloat16 with the linear modules of
            vision blocks and decoder layers in FP8 (see `sttm.models.fp8`); it needs a GPU of the Ada generation or
            newer, or a CPU, which emulates it.
        frame_pixels: the most pixels (width x height) of a frame in the vision tower; a larger frame is scaled down.
            None takes the bounds that the checkpoint gives for videos, or the defaults of its family if it gives none
            (see `sttm.models.pixel_bounds`).
        still_levels: a frame (with Qwen models, a pair of frames) with the same pixels as an earlier one takes the
            features of that one, and is not encoded. Above 0, so does a frame of which no block of 28x28 pixels differs
            by more than so many levels (of 255) on average from the last frame that was encoded.
    """

    path: str | None = None
    revision: str | None = None
    dtype: Dtype = "bfloat16"
    frame_pixels: int | None = Field(default=None, ge=32 * 32)
    still_levels: float = Field(default=0.0, ge=0, le=255)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of everything that is not in FP8."""
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
        return dtypes["bfloat16" if self.is_fp8 else self.dtype]

    @property
    def is_fp8(self) -> bool:
        """Whether the linear modules of vision blocks and decoder layers multiply in FP8."""
        return self.dtype == "fp8"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        folder: the files on this machine.
        name: the path or repository id that the checkpoint was opened by.
        commit: commit of the hub repository; None for a folder.
        settings: the settings that the checkpoint was opened with.
    """

    folder: Path
    name: str
    commit: str | None
    settings: ModelConfig

    @staticmethod
    def open(settings: ModelConfig) -> "Checkpoint":
        """Find the folder. For a hub repository, download the files that are needed; none of them can run code.

        Raises:
            ModelError: the folder or repository does not exist, or it lacks config.json or safetensors files.
        """
        import_torchvision()  # must come before transformers imports torchvision
        attention.register()
        path = settings.path or "tiny"
        if path == "tiny":
            folder, commit = BUILT_IN, None
        elif Path(path).is_dir():
            folder, commit = Path(path).resolve(), None
        else:
            folder, commit = _download(path, settings.revision)
        for pattern in ("config.json", "*.safetensors"):
            if not list(folder.glob(pattern)):
                raise ModelError(f"{folder} has no {pattern}; give a Hugging Face checkpoint with safetensors files")
        return Checkpoint(folder, path, commit, settings)

    @property
    def notice(self) -> str:
        """What a user of this checkpoint must know, for commands to print; empty for all but the built-in model."""
        return BUILT_IN_NOTICE if self.folder.resolve() == BUILT_IN.resolve() else ""

    @cached_property
    def config(self) -> Any:
        """The transformers config object.

        Raises:
            ModelError: no adapter serves the checkpoint, or the checkpoint is quantised in a way that is not supported.
        """
        from transformers import AutoConfig

        self._scheme  # noqa: B018 (raises if the quantisation is not supported)
        if self._is_lmms_lab:
            return lmms_lab.convert_config(self.folder, self._raw_config)
        family_of(str(self._raw_config.get("model_type")), self.name)  # its error is clearer than that of transformers
        config = AutoConfig.from_pretrained(self.folder)
        for part in (config, config.get_text_config()):
            vars(part).pop("quantization_config", None)  # this file reads FP8 weights itself, in any dtype
        return config

    @cached_property
    def family_class(self) -> type[Family]:
        """The adapter for this checkpoint's `model_type`."""
        return family_of(self.config.model_type, self.name)

    def family(self, with_processor: bool = True) -> Family:
        """The adapter of this checkpoint, with its tokenizer.

        Args:
            with_processor: also load the video processor, which only reading videos needs.

        Raises:
            ModelError: the chat template is missing, or it cannot render a video and a question.
        """
        processor = self._video_processor() if with_processor else None
        bounds, still_levels = self.pixel_bounds, self.settings.still_levels
        family = self.family_class(self.config, self._tokenizer(), processor, bounds, still_levels)
        family.require_template()  # fail now, and not at the first video
        return family

    @cached_property
    def pixel_bounds(self) -> PixelBounds | None:
        """Bounds of a frame's pixels from the settings or the family; None if those of the checkpoint count.

        Raises:
            ConfigError: `frame_pixels` is set for a model whose frames all have one size.
        """
        asked, bounds = self.settings.frame_pixels, self.family_class.default_bounds
        if asked is None:
            return None if bounds is None or describes_videos(self.folder) else bounds
        if bounds is None:
            raise ConfigError(
                f"model.frame_pixels={asked}: the vision tower of {self.name} takes frames of one size only; "
                "leave the setting out"
            )
        return bounds.with_frame_pixels(asked)

    def load_model(self, devices: Devices, with_fp8: bool = True) -> nn.Module:
        """Load the whole model (vision tower and language model) for inference.

        With several devices, the weights go straight to their GPUs and never fill the host's memory, because a 72B
        model has 145 GB of weights. FP8 weights that shall be used in another dtype do fill it.

        Args:
            devices: one device, or several over which the decoder layers are spread.
            with_fp8: False leaves a model whose settings say `fp8` in bfloat16; `use_fp8` can round it later.

        Raises:
            ModelError: a weight is missing or quantised in a way that is not supported, a device has no FP8, or there
                are more devices than layers.
        """
        devices = as_devices(devices)
        self._require_arithmetic(devices)
        key_mapping = lmms_lab.KEY_MAPPING if self._is_lmms_lab else None
        model = read_model(self._open_weights(), self.config, self.settings.torch_dtype, devices, key_mapping)
        is_alone = len(devices) == 1
        if self.settings.is_fp8 and with_fp8:
            self.use_fp8(model, devices[0] if is_alone else None)
        model = model.to(devices[0]) if is_alone else model
        model = model.eval().requires_grad_(False)
        self.family_class.prepare(model)
        fuse(model)
        return model

    def use_fp8(self, model: nn.Module, device: torch.device | None = None) -> None:
        """Round the linear modules of a model that `load_model` has loaded to FP8, in place.

        Args:
            model: the model, in bfloat16.
            device: where the FP8 modules go; None leaves them where the model is.
        """
        source = self._open_weights().fp8_source(_stored_names)
        for name, block in fp8_blocks(model):
            use_fp8(block, name, source, device)

    def load_language_model(self, devices: Devices) -> LanguageModel:
        """Load the language model alone, which is all that answering needs, on one device or spread over several.

        Raises:
            ModelError: a weight is missing, has another shape than the config says, or is quantised in a way that is
                not supported; a device has no FP8; or there are more devices than layers.
        """
        devices = as_devices(devices)
        self._require_arithmetic(devices)
        dtype, is_fp8 = self.settings.torch_dtype, self.settings.is_fp8
        return load_language_model(self._open_weights(), self.config, dtype, devices, is_fp8)

    @cached_property
    def generation_config(self) -> Any:
        """The checkpoint's generation settings as a transformers `GenerationConfig`; None if it has none."""
        from transformers import GenerationConfig

        if not (self.folder / "generation_config.json").exists():
            return None
        return GenerationConfig.from_pretrained(self.folder)

    @cached_property
    def digests(self) -> dict[str, Any]:
        """The blake3 digests of all files that can change a KV cache; they identify the checkpoint in a recipe."""
        groups = {
            "weights": ["*.safetensors"],
            "config": ["config.json"],
            "tokenizer": ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json"],
            "chat_template": ["chat_template.jinja", "chat_template.json"],
            "processor": ["preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"],
        }
        return {name: _digest(self.folder, patterns) for name, patterns in groups.items()}

    def _open_weights(self) -> Weights:
        return Weights(self.folder, self._scheme)

    @cached_property
    def _scheme(self) -> Fp8Scheme | None:
        return read_scheme(self._raw_config, self.name)

    @cached_property
    def _raw_config(self) -> dict[str, Any]:
        try:
            raw = json.loads((self.folder / "config.json").read_text("utf-8"))
        except ValueError as error:
            raise ModelError(f"{self.folder / 'config.json'} is not JSON ({error}); copy it again") from error
        if not isinstance(raw, dict):
            raise ModelError(
                f"{self.folder / 'config.json'} holds a {type(raw).__name__}, not a JSON object; copy it again"
            )
        return raw

    def _require_arithmetic(self, devices: tuple[torch.device, ...]) -> None:
        if self.settings.is_fp8:
            for device in devices:
                require_fp8(device)

    @property
    def _is_lmms_lab(self) -> bool:
        return lmms_lab.is_lmms_lab(self._raw_config)

    def _video_processor(self) -> Any:
        if self._is_lmms_lab:
            return lmms_lab.video_processor(self.config)
        return load_video_processor(self.folder, self.family_class.processor_class)

    def _tokenizer(self) -> Any:
        """The tokenizer, with the chat template of the processor, which lies in a file of its own and renders videos.

        The template in tokenizer_config.json may be for text and tools alone (Qwen2.5-VL). If both template files
        exist, the JSON file counts, as in the processors of transformers.
        """
        from transformers import AutoTokenizer

        if self._is_lmms_lab:
            return lmms_lab.load_tokenizer(self.folder)
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        legacy, jinja = self.folder / "chat_template.json", self.folder / "chat_template.jinja"
        if legacy.exists():
            tokenizer.chat_template = json.loads(legacy.read_text("utf-8"))["chat_template"]
        elif jinja.exists():
            tokenizer.chat_template = jinja.read_text("utf-8")
        if not tokenizer.chat_template:
            raise ModelError(
                f"{self.name} has no chat template; put the template of the model's processor into the folder as "
                "chat_template.json or chat_template.jinja"
            )
        return tokenizer


def _stored_names(name: str) -> list[str]:
    """The names that checkpoints may use for a weight that the whole model calls `name`."""
    text = "model.language_model."
    return text_names(name.removeprefix(text)) if name.startswith(text) else [name, name.removeprefix("model.")]


def _digest(folder: Path, patterns: list[str]) -> str:
    digest = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for path in sorted({p for pattern in patterns for p in folder.glob(pattern)}):
        digest.update(path.name.encode() + b"\0" + path.stat().st_size.to_bytes(8, "little"))
        digest.update_mmap(path)
    return digest.hexdigest()


def _download(path: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(
            snapshot_download(
                path,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
            )
        )
    except (OSError, ValueError, HFValidationError) as error:
        raise ModelError(
            f"{path!r} (revision {revision or 'default'}) is neither a folder here nor a hub "
            f"repository that can be read: {str(error).splitlines()[0]}"
        ) from error
    return folder, folder.name  # huggingface_hub names the folder of a snapshot after its commit
