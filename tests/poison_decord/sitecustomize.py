"""Poison for decord: on the PYTHONPATH of a job's processes this makes decord kill every process that opens a video."""

import ctypes
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class CrashingDecord(MetaPathFinder):
    """Lets decord load as usual, and then replaces its reader."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "decord":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_poison(module: ModuleType) -> None:
            load(module)
            module.VideoReader = crash  # type: ignore[attr-defined]

        spec.loader.exec_module = load_and_poison  # type: ignore[method-assign]
        return spec


def crash(*_: Any, **__: Any) -> None:
    """Read address 0, as a decoder does that trusts a damaged file."""
    ctypes.string_at(0)


sys.meta_path.insert(0, CrashingDecord())
