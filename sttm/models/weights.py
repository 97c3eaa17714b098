"""Read the tensors of a checkpoint's safetensors files by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sttm.errors import ModelError

_FLOATS = ("BF16", "F16", "F32")


class Weights:
    """The named tensors of all safetensors files in a folder, memory-mapped.

    Args:
        folder: the checkpoint.

    Raises:
        ModelError: a weight is quantised. Without the scales stored beside it, it would be read as wrong numbers.
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
                    f"(weights in {', '.join(_FLOATS)})"
                )

    def has(self, names: Sequence[str]) -> bool:
        """Whether there is a tensor with one of `names`."""
        return any(name in self._home for name in names)

    def read(self, names: Sequence[str], shape: torch.Size) -> Tensor:
        """Read the first of `names` that exists.

        Args:
            names: the current name of the tensor, then the names that older checkpoints use.
            shape: the expected shape.

        Raises:
            ModelError: no tensor has one of these names, or the tensor has another shape.
        """
        for name in names:
            if name in self._home:
                tensor = self._home[name].get_tensor(name)
                if tensor.shape != shape:
                    raise ModelError(
                        f"{self._folder}: {name} has shape {tuple(tensor.shape)}, but config.json says {tuple(shape)}; "
                        "take both files from the same checkpoint"
                    )
                return tensor
        raise ModelError(
            f"{self._folder} has no weight {names[0]!r}, also not under its older names; the checkpoint is incomplete, "
            "copy it again"
        )

    def shapes(self) -> Iterator[tuple[str, list[int]]]:
        """Names and shapes of all tensors, from the headers of the files."""
        for name, file in self._home.items():
            yield name, file.get_slice(name).get_shape()
