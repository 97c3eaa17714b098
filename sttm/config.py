"""The settings of one index, from YAML and overrides, and the recipe they amount to."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sttm.engine.fidelity import FidelityConfig
from sttm.engine.prefill import PrefillConfig
from sttm.errors import ConfigError
from sttm.merging import MergeConfig
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.settings import Settings
from sttm.store.key import Recipe, make_recipe
from sttm.store.kv.scheme import StoreConfig
from sttm.video.decode import VideoConfig, decoder_versions

SettingsType = TypeVar("SettingsType", bound=Settings)


class IndexConfig(Settings):
    """Everything that decides what an index holds: one group of settings a concern, declared beside its owner."""

    model: ModelConfig = ModelConfig()
    video: VideoConfig = VideoConfig()
    merge: MergeConfig = MergeConfig(budget=0.3)
    prefill: PrefillConfig = PrefillConfig()
    store: StoreConfig = StoreConfig()
    fidelity: FidelityConfig = FidelityConfig()


def load_config(kind: type[SettingsType], path: str | Path, overrides: list[str] | None = None) -> SettingsType:
    """Read settings from a YAML file; an override `a.b=value` (YAML value) replaces one of them.

    A file may hold `presets`: by name, sections that replace the file's own. The override `preset=name` takes one, and
    other overrides come after it.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value out of range; names the file, key and value.
    """
    try:
        data = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read settings {path}: {error.strerror}; name another file with --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, it holds a {type(data).__name__}")
    _take_preset(data, [o for o in overrides or [] if o.startswith("preset=")], path)
    for override in overrides or []:
        if not override.startswith("preset="):
            _apply(data, override)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explained(e, path, overrides or []) for e in error.errors())) from error


def _explained(error: Any, path: str | Path, overrides: list[str]) -> str:
    """One fault, with who said so: an override or the file."""
    key = ".".join(map(str, error["loc"]))
    named = [override.partition("=")[0] for override in overrides]
    unknown = re.search(r"unknown setting '([^']*)'", error["msg"])  # it has its name in the message only
    full = f"{key}.{unknown[1]}".lstrip(".") if unknown else key
    said = (f"{name}.".startswith(f"{full}.") if unknown else f"{full}.".startswith(f"{name}.") for name in named)
    is_override = bool(full) and any(said)
    return f"{'--set' if is_override else f'{path}:'} {key or 'settings'}: {_plain(error)}"


def _plain(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    return message if isinstance(given, dict) else f"{message} (got {given!r})"


def _take_preset(data: dict[str, Any], overrides: list[str], path: str | Path) -> None:
    """Drop `presets` from the settings and put the sections of the one asked for in place of the file's own."""
    presets = data.pop("presets", {})
    for override in overrides:
        name = override.removeprefix("preset=")
        if not isinstance(presets, dict) or not isinstance(presets.get(name), dict):
            known = f"it has {', '.join(presets)}" if isinstance(presets, dict) and presets else "it has none"
            raise ConfigError(f"{path} has no preset {name!r}; {known}")
        data.update(presets[name])


def _apply(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    *sections, key = name.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
        data = inner
    try:
        data[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from error


def index_recipe(config: IndexConfig, checkpoint: Checkpoint) -> Recipe:
    """All that changes the bytes of an artifact, besides the video itself.

    The checkpoint counts by its digests, not its name: the same weights in another folder make the same cache. How
    frames are resized is part of them, and a section of its own (`preprocess`) where the checkpoint does not say it.

    Raises:
        ModelError: the checkpoint cannot be used.
        ConfigError: a setting does not go with it.
    """
    bounds = checkpoint.pixel_bounds
    return make_recipe(
        model={**checkpoint.digests, "dtype": config.model.dtype},
        video={**config.video.model_dump(mode="json"), "decoders": decoder_versions()},
        merge=config.merge.model_dump(mode="json"),
        prefill=config.prefill.model_dump(mode="json", exclude={"chunk_tokens"}),
        store=config.store.model_dump(mode="json"),
        **({} if bounds is None else {"preprocess": asdict(bounds)}),
    )
