"""The layout of `kv.safetensors`, version 1, and a strict reader of its header.

A file's layout follows from a few numbers (`KVLayout`). The writer places tensors by it. The reader builds it again
from the header's record and accepts a header only if it lists exactly these tensors at exactly these places.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from sttm.errors import ArtifactError
from sttm.kv_cache import KVCache
from sttm.store.key import canonical_json
from sttm.store.kv.quantize import ALWAYS_EXACT, LayerShape, Part, parts_of
from sttm.store.kv.scheme import SCHEMES
from sttm.store.sealed import parse_json
from sttm.store.storage import INDEX_AGAIN

VERSION = 1
PAGE_BYTES = 4096
MAX_HEADER_BYTES = 4 << 20
MAX_LAYERS, MAX_TOKENS, MAX_HEADS, MAX_HEAD_DIM, MAX_AXES, MAX_CELLS = 512, 1 << 22, 1024, 1024, 4, 1 << 24

_DTYPE_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
CACHE_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Placed:
    """A tensor and its byte range [begin, end), counted from the end of the header."""

    part: Part
    begin: int
    end: int


@dataclass(frozen=True)
class Region:
    """Consecutive tensors that are read and verified together; padding fills them up to whole pages."""

    begin: int
    end: int
    tensors: tuple[Placed, ...]


@dataclass(frozen=True)
class KVLayout:
    """The numbers that decide where everything lies.

    Attributes:
        scheme: name in `SCHEMES` of the scheme of layers from `merge_layer` on.
        scheme_below: scheme of the layers below `merge_layer`, which hold every token.
        dtype: dtype of the cache, as safetensors names it.
        heads, head_dims: number of KV heads and their size, for each layer.
        merge_layer: first layer that holds the reduced tokens.
        tokens: number of tokens in a layer below `merge_layer`, and in a layer from it on.
        axes: number of axes of the position ids.
        survivors: number of visual tokens after the merge.
        grid: (T, H, W) of the visual tokens before the merge.
        leading, trailing: number of tokens at either end that stay exact, if the scheme keeps text.
    """

    scheme: str
    scheme_below: str
    dtype: str
    heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    merge_layer: int
    tokens: tuple[int, int]
    axes: int
    survivors: int
    grid: tuple[int, int, int]
    leading: int
    trailing: int

    def __post_init__(self) -> None:
        count = len(self.heads)
        checks = {
            "scheme": self.scheme in SCHEMES and self.scheme_below in SCHEMES,
            "dtype": self.dtype in CACHE_DTYPES,
            "layers": 1 <= count <= MAX_LAYERS and len(self.head_dims) == count,
            "heads": all(1 <= heads <= MAX_HEADS for heads in self.heads),
            "head_dims": all(2 <= dim <= MAX_HEAD_DIM and dim % 2 == 0 for dim in self.head_dims),
            "merge_layer": 0 <= self.merge_layer <= count,
            "tokens": len(self.tokens) == 2 and all(1 <= tokens <= MAX_TOKENS for tokens in self.tokens),
            "axes": 1 <= self.axes <= MAX_AXES,
            "survivors": 1 <= self.survivors <= self.tokens[1],
            "grid": len(self.grid) == 3 and all(size >= 1 for size in self.grid) and math.prod(self.grid) <= MAX_CELLS,
            "exact ends": self.leading >= 0 <= self.trailing and self.leading + self.trailing < min(self.tokens),
        }
        for name, passed in checks.items():
            if not passed:
                raise ValueError(f"{name} out of range")

    @classmethod
    def of(cls, cache: KVCache, scheme: str, scheme_below: str | None = None) -> "KVLayout":
        """The layout of a cache.

        Args:
            cache: the cache.
            scheme: name in `SCHEMES`.
            scheme_below: scheme of the layers below `merge_layer`; None takes the same scheme.
        """
        scheme_below = scheme_below or scheme
        reduced, leading, trailing = cache.tokens[1], 0, 0
        if SCHEMES[scheme].keeps_text or SCHEMES[scheme_below].keeps_text:
            first, last = int(cache.visual[0]), int(cache.visual[-1])
            leading = min(max(first, ALWAYS_EXACT), min(cache.tokens) - 1)
            trailing = min(reduced - 1 - last, min(cache.tokens) - 1 - leading)
        return cls(
            scheme=scheme,
            scheme_below=scheme_below,
            dtype=_DTYPE_NAMES[cache.keys[0].dtype],
            heads=tuple(key.shape[0] for key in cache.keys),
            head_dims=tuple(key.shape[2] for key in cache.keys),
            merge_layer=cache.merge_layer,
            tokens=cache.tokens,
            axes=cache.positions.shape[0],
            survivors=len(cache.visual),
            grid=cache.grid,
            leading=leading,
            trailing=trailing,
        )

    def scheme_of(self, layer: int) -> str:
        """The scheme of one layer."""
        return self.scheme if layer >= self.merge_layer else self.scheme_below

    def layer_shape(self, layer: int) -> LayerShape:
        """Shape of one layer's keys and values."""
        tokens, scheme = self.tokens[layer >= self.merge_layer], self.scheme_of(layer)
        ends = (self.leading, self.trailing) if SCHEMES[scheme].keeps_text else (0, 0)
        return LayerShape(self.heads[layer], tokens, self.head_dims[layer], CACHE_DTYPES[self.dtype], scheme, *ends)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The head region, then one region for each layer."""
        groups = [("head", self._head_parts())]
        groups += [(f"layers.{layer:03d}", parts_of(self.layer_shape(layer))) for layer in range(len(self.heads))]
        regions, offset = [], 0
        for prefix, parts in groups:
            begin, tensors = offset, []
            for part in parts:
                size = math.prod(part.shape) * part.dtype.itemsize
                tensors.append(Placed(Part(f"{prefix}.{part.name}", part.dtype, part.shape), offset, offset + size))
                offset += size
            fill = -offset % PAGE_BYTES
            if fill:
                tensors.append(Placed(Part(f"{prefix}.pad", torch.uint8, (fill,)), offset, offset + fill))
                offset += fill
            regions.append(Region(begin, offset, tuple(tensors)))
        return tuple(regions)

    @property
    def body_bytes(self) -> int:
        """Bytes after the header."""
        return self.regions[-1].end

    def _head_parts(self) -> tuple[Part, ...]:
        # frame_seconds comes first, so that every tensor begins at a multiple of its item size.
        return (
            Part("frame_seconds", torch.float64, (self.grid[0],)),
            Part("prefix_ids", torch.int32, (self.tokens[0],)),
            Part("positions", torch.int32, (self.axes, self.tokens[0])),
            Part("reduced_positions", torch.int32, (self.axes, self.tokens[1])),
            Part("visual", torch.int32, (self.survivors,)),
            Part("boxes", torch.int32, (self.survivors, 5)),
            Part("patches", torch.int32, (self.survivors,)),
            Part("multiplicity", torch.int32, (self.tokens[1],)),
        )


@dataclass(frozen=True)
class KVHeader:
    """A header: the layout, where the question continues, digests of all regions, and free notes.

    Attributes:
        layout: the numbers that decide where each tensor lies.
        next_position: position of the first token after the prefix, in layers below `merge_layer`.
        reduced_next_position: position of the first token after the prefix, in layers from `merge_layer` on.
        digests: blake3 of each region of `layout.regions`, hex.
        notes: free JSON, such as the provenance.
    """

    layout: KVLayout
    next_position: int
    reduced_next_position: int
    digests: tuple[str, ...]
    notes: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The bytes before the body: the length, JSON, and spaces up to a whole page.

        Raises:
            ValueError: the notes are too large.
        """
        record = canonical_json(self._record()).decode()
        table: dict[str, Any] = {"__metadata__": {"format": "pt", "sttm_kv": record}, **_tensor_table(self.layout)}
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % PAGE_BYTES)
        if len(text) > MAX_HEADER_BYTES:
            raise ValueError(f"header of {len(text)} bytes; keep the notes small")
        return len(text).to_bytes(8, "little") + text

    def _record(self) -> dict[str, Any]:
        layout = self.layout
        fields = {name: value for name, value in layout.__dict__.items() if name != "regions"}
        layers = [
            {
                "begin": region.begin,
                "end": region.end,
                "digest": digest,
                "scheme": layout.scheme_of(layer),
                "tokens": layout.tokens[layer >= layout.merge_layer],
                "attention": "full",
            }
            for layer, (region, digest) in enumerate(zip(layout.regions[1:], self.digests[1:], strict=True))
        ]
        return {
            "version": VERSION,
            "layout": fields,
            "quantization": {name: _quantization(name) for name in {layout.scheme, layout.scheme_below}},
            "keys_before_rope": True,
            "next_position": self.next_position,
            "reduced_next_position": self.reduced_next_position,
            "head": {"begin": 0, "end": layout.regions[0].end, "digest": self.digests[0]},
            "layers": layers,
            "notes": dict(self.notes),
        }


def _quantization(scheme: str) -> dict[str, Any]:
    rules = SCHEMES[scheme]
    return {
        "key": {"bits": rules.key_bits, "tokens_per_scale": rules.key_group, "axis": "channel"},
        "value": {"bits": rules.value_bits, "channels_per_scale": rules.value_group, "axis": "token, head"},
    }


def header_bytes(start: bytes, size_bytes: int, name: str) -> int:
    """Length of everything before the body.

    Args:
        start: the first 8 bytes of the file, or more.
        size_bytes: size of the whole file.
        name: name of the file for messages.

    Raises:
        ArtifactError: the file does not begin with the length of a header.
    """
    length = int.from_bytes(start[:8], "little") + 8
    if len(start) < 8 or not PAGE_BYTES <= length <= min(MAX_HEADER_BYTES + 8, size_bytes) or length % PAGE_BYTES:
        raise ArtifactError(f"{name} is damaged: no header of a KV file; {INDEX_AGAIN}")
    return length


def parse_header(data: bytes, size_bytes: int, name: str) -> KVHeader:
    """Read a header of unknown origin strictly.

    Args:
        data: all bytes before the body; `header_bytes` gives their number.
        size_bytes: size of the whole file.
        name: name of the file for messages.

    Raises:
        ArtifactError: anything at all differs from what version 1 writes, or exceeds its limits.
    """
    try:
        header = _parse(data[8:])
        if header.layout.body_bytes + len(data) != size_bytes:
            raise ValueError(f"{size_bytes} bytes long, expected {header.layout.body_bytes + len(data)}")
        if header.to_bytes() != data:
            raise ValueError("its header is not in the form version 1 writes")
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
        cause = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{name} is malformed: {cause}; {INDEX_AGAIN}") from None
    return header


def _parse(text: bytes) -> KVHeader:
    table = parse_json(text)
    record = parse_json(table.pop("__metadata__")["sttm_kv"].encode())
    if record["version"] != VERSION:
        raise ValueError(f"KV format version {record['version']}, this program reads {VERSION}")
    fields = record["layout"]
    layout = KVLayout(**{key: _frozen(value, key) for key, value in fields.items()})
    for placed, (name, entry) in zip(_tensor_table(layout).items(), table.items(), strict=False):
        if placed != (name, entry):
            raise ValueError(f"tensor {name[:60]!r} is not {placed[0]} of the expected type, shape and place")
    digests = (record["head"]["digest"], *(layer["digest"] for layer in record["layers"]))
    position, reduced = (_integer(record[name], name) for name in ("next_position", "reduced_next_position"))
    return KVHeader(layout, position, reduced, digests, record["notes"])


def _frozen(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return tuple(_integer(item, name) for item in value)
    return value if isinstance(value, str) else _integer(value, name)


def _integer(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{name} is not a small non-negative integer")
    return value


def _tensor_table(layout: KVLayout) -> dict[str, Any]:
    return {
        placed.part.name: {
            "dtype": _DTYPE_NAMES[placed.part.dtype],
            "shape": list(placed.part.shape),
            "data_offsets": [placed.begin, placed.end],
        }
        for region in layout.regions
        for placed in region.tensors
    }
