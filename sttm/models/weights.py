"""The tensors of a checkpoint's safetensors files, by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sttm.errors import ModelError

_FLOATS = ("BF16", "F16", "F32")


class Weights:
    """Named tensors over all safetensors files of a folder, memory-mapped.

    Raises:
        ModelError: a weight is no ordinary float. Quantised ones mean nothing without the scales that lie beside them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._home = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)
        for name, file in self._home.items():
            dtype = file.get_slice(name).get_dtype()
            if name.endswith((".weight", ".bias")) and dtype not in _FLOATS:
                raise ModelError(
                    f"{folder}: {name} is stored as {dtype}, which is quantised; take the unquantised checkpoint "
                    f"({', '.join(_FLOATS)})"
                )

    def has(self, names: Sequence[str]) -> bool:
        """Whether there is a tensor under one of `names`."""
        return any(name in self._home for name in names)

    def read(self, names: Sequence[str], shape: torch.Size) -> Tensor:
        """The first tensor that exists under one of `names`.

        Raises:
            ModelError: there is none, or it has another shape.
        """
        for name in names:
            if name in self._home:
                tensor = self._home[name].get_tensor(name)
                if tensor.shape != shape:
                    raise ModelError(
                        f"{self._folder}: {name} has shape {tuple(tensor.shape)}, its config says {tuple(shape)}"
                    )
                return tensor
        raise ModelError(f"{self._folder} has no weight {names[0]!r} (nor under its older names)")

    def shapes(self) -> Iterator[tuple[str, list[int]]]:
        """Names and shapes of all, from the headers."""
        for name, file in self._home.items():
            yield name, file.get_slice(name).get_shape()
