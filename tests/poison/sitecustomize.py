"""Poison for the index job: a filesystem whose files harm the process that opens them, as bad videos do to decoders.

On the PYTHONPATH of a job's processes this runs at their start and teaches fsspec `poison://<harm>/<name>.mp4`. Every
opening is first noted as a line in the file `$POISON_LOG`, so that a test can count the tries.
"""

import ctypes
import os
import re

import fsspec
from fsspec.spec import AbstractFileSystem


class PoisonFileSystem(AbstractFileSystem):
    """Listing is harmless; opening `poison://segv/a.mp4` is not."""

    protocol = "poison"

    def info(self, path: str, **kwargs: object) -> dict:
        return {"name": path, "size": 1000, "type": "file", "mtime": 1.0}

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> list:
        return [self.info(path)] if detail else [path]

    def _open(self, path: str, mode: str = "rb", **kwargs: object) -> None:
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
        raise RuntimeError(f"a bug in somebody's library: {path}")

    open = _open

    def cat_file(self, path: str, **kwargs: object) -> None:
        self._open(path)


fsspec.register_implementation("poison", PoisonFileSystem, clobber=True)
