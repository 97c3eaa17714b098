"""`tokens.parquet`: one row for each reduced visual token, with its place in the video and its feature vector.

The table serves search, audit and a later prefill; answering never reads it. A vector is the raw bytes of `dim`
bfloat16 numbers.
"""

import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sttm.errors import ArtifactError
from sttm.store.kv.header import MAX_CELLS, MAX_TOKENS
from sttm.store.kv.unpack import are_inside
from sttm.store.sealed import parse_json
from sttm.store.storage import INDEX_AGAIN

ROWS_PER_GROUP = 2048
# A table may unpack to 64 MB and 100 times its file: no real table needs more, and a forged one gets no more memory.
_UNPACKED_BYTES, _UNPACKED_RATIO = 64 << 20, 100
_BOX = ("frame", "y0", "x0", "y1", "x1")
_TABLE = (*_BOX, "patches", "index", "seconds")


@dataclass(frozen=True)
class Tokens:
    """The reduced visual tokens of one video.

    Attributes:
        boxes: int32 [M, 5] (t, y0, x0, y1, x1), half-open, in grid units.
        patches: int32 [M], how many cells of the finest grid each token stands for.
        index: int32 [M], raster index (t·H + y)·W + x of each token's top-left cell.
        seconds: float64 [M], presentation time of each token's frame.
        grid: (T, H, W) before the merge.
        features: bfloat16 [M, C].
    """

    boxes: Tensor
    patches: Tensor
    index: Tensor
    seconds: Tensor
    grid: tuple[int, int, int]
    features: Tensor

    def __repr__(self) -> str:
        return f"Tokens({len(self.patches)} of grid {self.grid})"


def write_tokens(
    boxes: Tensor, patches: Tensor, index: Tensor, frame_seconds: Tensor, features: Tensor, grid: tuple[int, int, int]
) -> bytes:
    """The bytes of a `tokens.parquet`.

    Args:
        boxes: int32 [M, 5] (t, y0, x0, y1, x1), half-open, in grid units.
        patches: int32 [M], how many cells of the finest grid each token stands for.
        index: int32 [M], raster index (t·H + y)·W + x of each token's top-left cell.
        frame_seconds: float64 [T], presentation time of each grid frame.
        features: [M, C] of any float dtype; stored as bfloat16.
        grid: (T, H, W) before the merge.
    """
    boxes, dim = boxes.cpu(), features.shape[1]
    vectors = features.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy()
    columns: dict[str, Any] = {name: boxes[:, axis].to(torch.int32).numpy() for axis, name in enumerate(_BOX)}
    columns["patches"] = patches.cpu().to(torch.int32).numpy()
    columns["index"] = index.cpu().to(torch.int32).numpy()
    columns["seconds"] = frame_seconds.cpu().double()[boxes[:, 0].long()].numpy()
    columns["vector"] = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2 * dim), len(vectors), [None, pa.py_buffer(vectors)]
    )
    about = {"version": 1, "dtype": "bfloat16", "dim": dim, "grid": list(grid)}
    table = pa.table(columns).replace_schema_metadata({"sttm_tokens": json.dumps(about)})
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_page_checksum=True,
    )
    return out.getvalue()


def decode_tokens(data: bytes, name: str = "tokens.parquet") -> Tokens:
    """The tokens of a file in memory, with every number checked against its range.

    Args:
        data: the bytes of the file.
        name: name of the file for messages.

    Raises:
        ArtifactError: the file is malformed or damaged.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True, pre_buffer=True)
        about = parse_json(file.schema_arrow.metadata[b"sttm_tokens"])
        if about["version"] != 1 or about["dtype"] != "bfloat16":
            raise ValueError(f"format version {about['version']}, dtype {about['dtype']}")
        dim, grid = about["dim"], tuple(about["grid"])
        _require_plausible(file, dim, grid, len(data))
        return _tokens(file.read(), dim, grid)
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: {error}; {INDEX_AGAIN}") from None


def export_tokens(tokens: Tokens) -> bytes:
    """A Parquet table for analytics: the same columns, the vector as Arrow's fixed-shape tensor of float16 [C].

    float16 overflows beyond 65504 and rounds below 6e-5, which bfloat16 does not; the artifact has the exact bytes.
    """
    vectors = tokens.features.to(torch.float16)
    flat = pa.array(vectors.flatten().numpy(), pa.float16())
    kind = pa.fixed_shape_tensor(pa.float16(), [vectors.shape[1]])
    storage = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    columns = {name: tokens.boxes[:, i].numpy() for i, name in enumerate(_BOX)}
    columns |= {name: getattr(tokens, name).numpy() for name in ("patches", "index", "seconds")}
    out = io.BytesIO()
    pq.write_table(pa.table({**columns, "vector": pa.ExtensionArray.from_storage(kind, storage)}), out)
    return out.getvalue()


def _require_plausible(file: pq.ParquetFile, dim: Any, grid: tuple[Any, ...], size_bytes: int) -> None:
    """Check the columns of a file and its unpacked size before anything is unpacked.

    Raises:
        ValueError: its columns or its grid are not those of version 1, or it would unpack to more than it may.
    """
    if not all(type(number) is int and number >= 1 for number in (dim, *grid)) or len(grid) != 3:
        raise ValueError(f"dim {ascii(dim)[:40]} or grid {ascii(grid)[:80]} out of range")
    if math.prod(grid) > MAX_CELLS:
        raise ValueError(f"grid {grid} has over {MAX_CELLS} cells")
    schema = pa.schema({**dict.fromkeys(_TABLE, pa.int32()), "seconds": pa.float64(), "vector": pa.binary(2 * dim)})
    if not file.schema_arrow.equals(schema):
        raise ValueError("its columns are not those of version 1")
    rows = sum(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
    unpacked = rows * (4 * len(_TABLE) + 4 + 2 * dim)
    if not (1 <= rows <= MAX_TOKENS and unpacked <= _UNPACKED_BYTES + _UNPACKED_RATIO * size_bytes):
        raise ValueError(f"{rows} rows of {dim} numbers in {size_bytes} bytes")


def _tokens(table: pa.Table, dim: int, grid: Any) -> Tokens:
    if any(column.null_count for column in table.columns):
        raise ValueError("a value is missing")
    columns = {name: torch.from_numpy(table.column(name).to_numpy().copy()) for name in _TABLE}
    vectors = table.column("vector").combine_chunks()
    data = np.frombuffer(vectors.buffers()[1], np.uint8, len(vectors) * 2 * dim, vectors.offset * 2 * dim)
    features = torch.from_numpy(data.copy()).view(torch.bfloat16).view(-1, dim)
    boxes, index = torch.stack([columns[name] for name in _BOX], dim=1), columns["index"]
    counted = bool((columns["patches"] >= 1).all() and (index >= 0).all() and (index < math.prod(grid)).all())
    if not (are_inside(boxes, grid) and counted and torch.isfinite(columns["seconds"]).all()):
        raise ValueError("boxes, places or times are out of range")
    return Tokens(boxes, columns["patches"], index, columns["seconds"], grid, features)
