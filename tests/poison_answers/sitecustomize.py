"""Poison for the answer job: questions that harm the process that asks them.

On the PYTHONPATH of a job's processes this runs at their start and waits for the module that turns questions to ids.
"""

import ctypes
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class PoisonFinder(MetaPathFinder):
    """Wraps `turns_ids` of the real module: a question with "segv!" or "bug!" in it is harmful."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "sttm.query.turns":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            real = module.turns_ids
            module.turns_ids = lambda family, turns: real(family, harm(turns))  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def harm(turns: tuple[str, ...]) -> tuple[str, ...]:
    if "segv!" in turns[-1]:
        ctypes.string_at(0)
    if "bug!" in turns[-1]:
        raise RuntimeError("a bug in somebody's library")
    return turns


sys.meta_path.insert(0, PoisonFinder())
