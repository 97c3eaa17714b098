"""How a published FP8 checkpoint stores its weights, from the `quantization_config` in its config.json.

Two formats are read: that of DeepSeek and Qwen (`quant_method: fp8`, a scale for each block of 128 x 128), and FP8 of
llm-compressor (`quant_method: compressed-tensors`, a scale for each output channel, tensor or block). In both a weight
is float8_e4m3fn, and beside `x.weight` lies `x.weight_scale_inv` or `x.weight_scale`; the weight is the product of the
two. Which modules are not quantised follows from the dtypes of the stored weights.

Activations are always rounded with a scale for each token, so `input_scale` of static schemes is not used.

Sources: transformers, integrations/finegrained_fp8.py; https://github.com/vllm-project/compressed-tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sttm.errors import ModelError

SCALE_NAMES = ("weight_scale_inv", "weight_scale")


@dataclass(frozen=True)
class Fp8Scheme:
    """Which numbers of a weight share a scale. The shape of the scale decides between tensor, rows and blocks.

    Attributes:
        block: rows and columns of a block with one scale; None if no weight has blocks.
    """

    block: tuple[int, int] | None = None

    def fits(self, weight: list[int], scale: list[int]) -> bool:
        """Whether a scale of this shape can belong to a weight of this shape."""
        if len(weight) != 2:
            return False
        return _is_by_rows(weight[0], scale) or scale == self._blocks(weight)

    def scale_of_rows(self, scale: Tensor, rows: int) -> Tensor | None:
        """float32 [rows, 1]: the scale of each row, from a scale that `fits`; None if a row has several."""
        if not _is_by_rows(rows, list(scale.shape)):
            return None
        return scale.float().reshape(-1, 1).expand(rows, 1).contiguous()

    def dequantised(self, codes: Tensor, scale: Tensor) -> Tensor:
        """float32 [rows, columns]: the products of codes and a scale that `fits`."""
        rows, columns = codes.shape
        of_rows = self.scale_of_rows(scale, rows)
        if of_rows is not None:
            return codes.float() * of_rows
        assert self.block is not None
        height, width = self.block
        expanded = scale.float().repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
        return codes.float() * expanded

    def _blocks(self, weight: list[int]) -> list[int] | None:
        return None if self.block is None else [-(-weight[0] // self.block[0]), -(-weight[1] // self.block[1])]


def _is_by_rows(rows: int, scale: list[int]) -> bool:
    """Whether a scale of this shape has one number for a weight of so many rows, or one for each row."""
    return scale in ([], [1], [1, 1], [rows], [rows, 1])


def read_scheme(config: dict[str, Any], checkpoint: str) -> Fp8Scheme | None:
    """How the weights of a checkpoint are stored; None if they are not quantised.

    Args:
        config: the content of config.json.
        checkpoint: name of the checkpoint, for the error message.

    Raises:
        ModelError: the weights are quantised in another way than described above.
    """
    for found in _quantisations(config):
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        try:
            return _READERS[method](found)
        except (_UnsupportedError, KeyError, TypeError, AttributeError) as error:  # or a part is of another kind
            cause = f", {error}" if isinstance(error, _UnsupportedError) else ""
            raise ModelError(
                f"{checkpoint} is quantised (quantization_config in config.json, method {method!r}{cause}), which is "
                "not supported; take the unquantised checkpoint, or one in FP8 (quant_method fp8, or "
                "compressed-tensors with 8-bit floats)"
            ) from None
    return None


class _UnsupportedError(Exception):
    """What about a known quantisation method is not supported."""


def _quantisations(config: dict[str, Any]) -> Iterator[Any]:
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):  # older compressed-tensors checkpoints call it compression_config
            yield from (part[key] for key in ("quantization_config", "compression_config") if part.get(key))


def _read_fp8(found: dict[str, Any]) -> Fp8Scheme:
    if found.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise _UnsupportedError(f"fmt {found['fmt']!r}")
    return Fp8Scheme(_block(found.get("weight_block_size", [128, 128])))


def _read_compressed_tensors(found: dict[str, Any]) -> Fp8Scheme:
    if found.get("format", "float-quantized") not in ("float-quantized", "naive-quantized"):
        raise _UnsupportedError(f"format {found['format']!r}")
    if found.get("quantization_status", "compressed") != "compressed":
        raise _UnsupportedError(f"quantization_status {found['quantization_status']!r}")
    if found.get("transform_config"):
        raise _UnsupportedError("with transform_config")
    if (found.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise _UnsupportedError("with sparse weights")
    schemes = {_group_scheme(group["weights"]) for group in found["config_groups"].values()}
    if len(schemes) != 1:
        raise _UnsupportedError(f"{len(schemes)} kinds of groups")
    return schemes.pop()


def _group_scheme(weights: dict[str, Any]) -> Fp8Scheme:
    if (weights.get("type"), weights.get("num_bits")) != ("float", 8) or not weights.get("symmetric", True):
        raise _UnsupportedError(f"weights of {weights.get('num_bits')} bits, type {weights.get('type')!r}")
    strategy = weights.get("strategy")
    if strategy not in ("tensor", "channel", "block"):
        raise _UnsupportedError(f"strategy {strategy!r}")
    return Fp8Scheme(_block(weights["block_structure"]) if strategy == "block" else None)


def _block(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise _UnsupportedError(f"blocks {size!r}")
    return size[0], size[1]


_READERS = {"fp8": _read_fp8, "compressed-tensors": _read_compressed_tensors}


def is_scale(dtype: str) -> bool:
    """Whether a scale can have this dtype, as safetensors names it."""
    return dtype in ("F32", "BF16", "F16")


def require_usable(scale: Tensor, name: str, folder: str) -> None:
    """Check the values of a scale.

    Raises:
        ModelError: a scale is negative, infinite or NaN.
    """
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise ModelError(f"{folder}: {name} holds scales that are negative or not finite; copy the checkpoint again")
