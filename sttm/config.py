"""The settings of one index, from YAML and overrides, and the recipe they amount to."""

import difflib
import os
import re
from collections.abc import Iterable
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

# In a wheel the settings files lie in the package; in a checkout they are the top-level folder that a person edits.
_PACKAGE = Path(__file__).parent
_SHIPPED = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"

COMMAND_SECTIONS = ("run", "sampling", "cache", "answer", "serve")  # of the commands in jobs/, which share the files

SettingsType = TypeVar("SettingsType", bound=Settings)


class IndexConfig(Settings):
    """Everything that decides what an index holds: one group of settings a concern, declared beside its owner."""

    model: ModelConfig = ModelConfig()
    video: VideoConfig = VideoConfig()
    merge: MergeConfig = MergeConfig(budget=0.3)
    prefill: PrefillConfig = PrefillConfig()
    store: StoreConfig = StoreConfig()
    fidelity: FidelityConfig = FidelityConfig()


def shipped_settings() -> dict[str, Path]:
    """The settings files that come with the package, by the name that `--config` takes."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def settings_file(config: str | Path) -> Path:
    """The file that a `--config` value means: the name of a shipped one (`tiny`), or a path (`my.yaml`, `./tiny`).

    Raises:
        ConfigError: no shipped file has this name; the message lists those that do.
    """
    if isinstance(config, Path) or "/" in config or os.sep in config or config.endswith((".yaml", ".yml")):
        return Path(config)
    shipped = shipped_settings()
    if config in shipped:
        return shipped[config]
    near = difflib.get_close_matches(config, shipped, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"no settings are named {config!r}; {hint}{_names(shipped)}, or give the path of a YAML file")


def read_settings(config: str | Path | None) -> dict[str, Any]:
    """The mapping that a settings file holds, by name or path; an empty one for None.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping; names the file.
    """
    if config is None:
        return {}
    path = settings_file(config)
    try:
        data = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as error:
        known = _names(shipped_settings())
        raise ConfigError(f"cannot read settings {path}: {error.strerror}; name another file, or: {known}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, it holds a {type(data).__name__}")
    return data


def load_index_config(config: str | Path | None, overrides: list[str] | None = None) -> IndexConfig:
    """The settings that decide what is stored, from a file that may hold sections of the commands (`run`), too.

    Args:
        config: name of a shipped settings file, or path of a YAML file; None leaves every setting at its default.
        overrides: `section.key=value`, each replacing one setting.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value out of range; names the file, key and value.
    """
    return load_config(IndexConfig, config, overrides, ignored=COMMAND_SECTIONS)


def load_config(
    kind: type[SettingsType],
    config: str | Path | None = None,
    overrides: list[str] | None = None,
    ignored: tuple[str, ...] = (),
) -> SettingsType:
    """Read settings from a YAML file and apply overrides.

    Args:
        kind: class of the settings.
        config: name of a shipped settings file, or path of a YAML file; None leaves every setting at its default.
        overrides: `section.key=value` with a YAML value, each replacing one setting. `preset=name` takes the sections
            that the file's `presets` hold under that name in place of the file's own; the other overrides come after.
        ignored: sections that a file may hold and this class of settings does not.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value out of range; names the file, key and value.
    """
    data, path = read_settings(config), config or "the default settings"
    _take_preset(data, [o for o in overrides or [] if o.startswith("preset=")], path)
    for override in overrides or []:
        if not override.startswith("preset="):
            _apply(data, override)
    try:
        return kind.model_validate({name: value for name, value in data.items() if name not in ignored})
    except ValidationError as error:
        raise ConfigError("; ".join(_explained(e, path, overrides or []) for e in error.errors())) from error


def _names(shipped: Iterable[str]) -> str:
    return f"shipped are {', '.join(shipped)}"


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

    The recipe names the checkpoint by its digests, because equal weights in another folder make the same cache. The
    digests cover how frames are resized; where the checkpoint does not say that, the section `preprocess` does. The
    section also has `model.still_levels`, unless that is 0, as it was before there was this setting.

    Raises:
        ModelError: the checkpoint cannot be used.
        ConfigError: a setting does not go with it.
    """
    bounds, still_levels = checkpoint.pixel_bounds, config.model.still_levels
    preprocess = {
        **({} if bounds is None else asdict(bounds)),
        **({"still_levels": still_levels} if still_levels else {}),
    }
    # A GPU decodes the very pixels of a CPU, and `auto` may choose either.
    decoder = "auto" if config.video.decoder == "nvdec" else config.video.decoder
    return make_recipe(
        model={**checkpoint.digests, "dtype": config.model.dtype},
        video={**config.video.model_dump(mode="json"), "decoder": decoder, "decoders": decoder_versions()},
        merge=config.merge.model_dump(mode="json"),
        prefill=config.prefill.model_dump(mode="json", exclude={"chunk_tokens"}),
        store=config.store.model_dump(mode="json"),
        **({"preprocess": preprocess} if preprocess else {}),
    )
