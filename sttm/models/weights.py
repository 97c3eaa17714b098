"""Read the tensors of a checkpoint's safetensors files by name, and undo their FP8."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sttm.errors import ModelError
from sttm.models.fp8 import Fp8Rows, pad_channels, quantise_rows
from sttm.models.fp8_linear import WeightSource
from sttm.models.fp8_scheme import SCALE_NAMES, Fp8Scheme, is_scale, require_usable

_FLOATS = ("BF16", "F16", "F32")
_CPU = torch.device("cpu")


class Weights:
    """The named tensors of all safetensors files in a folder, memory-mapped.

    Args:
        folder: the checkpoint.
        scheme: how FP8 weights are stored; None refuses them.

    Attributes:
        folder: the checkpoint.

    Raises:
        ModelError: a weight is quantised in a way that `scheme` does not describe, or its scale is missing or has a
            wrong shape. Without its scale it would be read as wrong numbers.
    """

    def __init__(self, folder: Path, scheme: Fp8Scheme | None = None) -> None:
        self.folder, self._scheme = folder, scheme
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._home = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)
        self._scales = {}  # names of FP8 weights, and of their scales
        for name, file in self._home.items():
            dtype = file.get_slice(name).get_dtype()
            if name.endswith((".weight", ".bias")) and dtype not in _FLOATS:
                if scheme is None or dtype != "F8_E4M3" or not name.endswith(".weight"):
                    raise ModelError(
                        f"{folder}: {name} is stored as {dtype}, which is quantised; take the unquantised checkpoint "
                        f"(weights in {', '.join(_FLOATS)})"
                    )
                self._scales[name] = self._scale_name(name, scheme)

    def has(self, names: Sequence[str]) -> bool:
        """Whether there is a tensor with one of `names`."""
        return any(name in self._home for name in names)

    @property
    def are_fp8(self) -> bool:
        """Whether any weight is stored in FP8."""
        return bool(self._scales)

    def read(self, names: Sequence[str], shape: torch.Size, device: torch.device = _CPU) -> Tensor:
        """Read the first of `names` that exists; an FP8 weight comes back in float32, multiplied by its scale.

        Args:
            names: the current name of the tensor, then the names that older checkpoints use.
            shape: the expected shape.
            device: where the tensor goes; an FP8 weight is multiplied there.

        Raises:
            ModelError: no tensor has one of these names, the tensor has another shape, or its scale is damaged.
        """
        name = self._find(names, shape)
        tensor = self._tensor(name).to(device)
        if name not in self._scales:
            return tensor
        assert self._scheme is not None
        return self._scheme.dequantised(tensor, self._scale(name).to(device))

    def read_fp8(self, names: Sequence[str], shape: torch.Size, device: torch.device = _CPU) -> Fp8Rows | None:
        """Read an FP8 weight as rows with a scale each; None if the weight is stored unquantised.

        Scales of tensors and channels are kept, and so are the codes. A row whose blocks have different scales is
        rounded again.

        Args:
            names: the current name of the weight, then the names that older checkpoints use.
            shape: the expected shape.
            device: where the weight goes.

        Raises:
            ModelError: no tensor has one of these names, the tensor has another shape, or its scale is damaged.
        """
        name = self._find(names, shape)
        if name not in self._scales:
            return None
        assert self._scheme is not None
        codes, scale = self._tensor(name).to(device), self._scale(name).to(device)
        scales = self._scheme.scale_of_rows(scale, len(codes))
        if scales is None:
            return quantise_rows(self._scheme.dequantised(codes, scale))
        return Fp8Rows(pad_channels(codes), scales, codes.shape[:1])

    def fp8_source(self, names: Callable[[str], Sequence[str]]) -> WeightSource:
        """Where `sttm.models.fp8_linear.use_fp8` finds its weights.

        If the checkpoint is in FP8, weights that it stores unquantised stay unquantised. All other weights are rounded.

        Args:
            names: from the name of a weight in the model to the names that checkpoints use for it.
        """

        def find(name: str, weight: Tensor, device: torch.device) -> Fp8Rows | Tensor | None:
            candidates = names(name)
            if not self.are_fp8 or not self.has(candidates):
                return weight
            return self.read_fp8(candidates, weight.shape, device)

        return find

    def dequantised(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors but the scales, as a state dict; FP8 weights are multiplied by their scales and are in `dtype`.

        Raises:
            ModelError: a scale is damaged.
        """
        scales = set(self._scales.values())
        state = {}
        for name in self._home.keys() - scales:
            tensor = self._tensor(name)
            if name in self._scales:
                assert self._scheme is not None
                tensor = self._scheme.dequantised(tensor, self._scale(name)).to(dtype)
            state[name] = tensor
        return state

    def shapes(self) -> Iterator[tuple[str, list[int]]]:
        """Names and shapes of all tensors, from the headers of the files."""
        for name, file in self._home.items():
            yield name, file.get_slice(name).get_shape()

    def _find(self, names: Sequence[str], shape: torch.Size) -> str:
        for name in names:
            if name in self._home:
                found = tuple(self._home[name].get_slice(name).get_shape())
                if found != tuple(shape):
                    raise ModelError(
                        f"{self.folder}: {name} has shape {found}, but config.json says {tuple(shape)}; "
                        "take both files from the same checkpoint"
                    )
                return name
        raise ModelError(
            f"{self.folder} has no weight {names[0]!r}, also not under its older names; the checkpoint is incomplete, "
            "copy it again"
        )

    def _tensor(self, name: str) -> Tensor:
        return self._home[name].get_tensor(name)

    def _scale(self, weight: str) -> Tensor:
        name = self._scales[weight]
        scale = self._tensor(name)
        require_usable(scale, name, str(self.folder))
        return scale

    def _scale_name(self, weight: str, scheme: Fp8Scheme) -> str:
        """The name of an FP8 weight's scale."""
        shape = self._home[weight].get_slice(weight).get_shape()
        names = [weight.removesuffix("weight") + scale for scale in SCALE_NAMES]
        for name in names:
            if name in self._home:
                found = self._home[name].get_slice(name)
                if is_scale(found.get_dtype()) and scheme.fits(shape, found.get_shape()):
                    return name
                raise ModelError(
                    f"{self.folder}: {name} is {found.get_dtype()} {found.get_shape()}, which is no scale for a weight "
                    f"of shape {shape} by the quantization_config in config.json; take both files from one checkpoint"
                )
        raise ModelError(
            f"{self.folder}: {weight} is stored in FP8 without a scale ({' or '.join(names)}); the checkpoint is "
            "incomplete, copy it again"
        )
