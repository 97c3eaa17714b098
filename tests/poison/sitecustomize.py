"""Poison for the index job: a filesystem whose files harm the process that opens them, as bad videos do to decoders.

On the PYTHONPATH of a job's processes this runs at their start and teaches fsspec `poison://<harm>/<name>.mp4`. Every
opening is first noted as a line in the file `$POISON_LOG`, so that a test can count the tries. `bug` reads well and
harms the decoder: whatever a filesystem raises is an outage.
"""

import ctypes
import importlib.util
import io
import os
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

BUG = b"bug in the decoder"


class PoisonFileSystem(AbstractFileSystem):
    """Listing is harmless; opening `poison://segv/a.mp4` is not."""

    protocol = "poison"

    def info(self, path: str, **kwargs: object) -> dict:
        return {"name": path, "size": 1000, "type": "file", "mtime": 1.0}

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> list:
        return [self.info(path)] if detail else [path]

    def _open(self, path: str, mode: str = "rb", **kwargs: object) -> io.BytesIO:
        harm = self._strip_protocol(path).split("/")[0]
        with open(os.environ["POISON_LOG"], "a") as log:
            log.write(f"{harm}\n")
        if harm == "segv":
            ctypes.string_at(0)
        elif harm == "loop":
            re.fullmatch("(a+)+", "a" * 99 + "b")  # backtracks for ever in native code, and keeps the GIL
        elif harm == "hang":
            ctypes.PyDLL(None).sleep(10_000)  # the same, but waits
        elif harm == "hog":
            held = []
            while True:
                held.append(bytearray(64 << 20))
        return io.BytesIO(BUG.ljust(1000))

    open = _open

    def cat_file(self, path: str, **kwargs: object) -> bytes:
        return self._open(path).read()


class BuggyDecoder(MetaPathFinder):
    """Wraps `av.open`: the bytes of `bug` make it raise what no decoder should."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "av":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            real = module.open
            module.open = lambda source, **options: real(harmless(source), **options)  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def harmless(source: io.RawIOBase) -> io.RawIOBase:
    beginning = source.read(len(BUG))
    source.seek(0)
    if beginning == BUG:
        raise RuntimeError("a bug in somebody's library")
    return source


fsspec.register_implementation("poison", PoisonFileSystem, clobber=True)
sys.meta_path.insert(0, BuggyDecoder())
