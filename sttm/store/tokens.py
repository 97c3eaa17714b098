"""`tokens.parquet`: one row a reduced visual token, with its place in the video and its feature vector.

For search, audit and a later prefill; answering never reads it. The vector is the raw bytes of `dim` bfloat16
numbers, so the table columns can be read without it.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sttm.errors import ArtifactError
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage

ROWS_PER_GROUP = 2048
_BOX = ("frame", "y0", "x0", "y1", "x1")
_TABLE = (*_BOX, "patches", "index", "seconds")


@dataclass(frozen=True)
class Tokens:
    """The reduced visual tokens of one video.

    Attributes:
        boxes: int32 [M, 5] (t, y0, x0, y1, x1), half-open, in grid units.
        patches: int32 [M], finest cells each token stands for.
        index: int32 [M], raster index (t·H + y)·W + x of each token's top-left cell.
        seconds: float64 [M], presentation time of each token's frame.
        grid: (T, H, W) before the merge.
        features: bfloat16 [M, C], or None if only the table was read.
    """

    boxes: Tensor
    patches: Tensor
    index: Tensor
    seconds: Tensor
    grid: tuple[int, int, int]
    features: Tensor | None

    def __repr__(self) -> str:
        return f"Tokens({len(self.patches)} of grid {self.grid})"


def write_tokens(
    boxes: Tensor, patches: Tensor, index: Tensor, frame_seconds: Tensor, features: Tensor, grid: tuple[int, int, int]
) -> bytes:
    """The bytes of a `tokens.parquet`.

    Args:
        boxes, patches, index, grid: as in `Tokens`.
        frame_seconds: float64 [T], presentation time of each grid frame.
        features: [M, C] of any float dtype; stored as bfloat16.
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


def read_tokens(storage: Storage, key: str, digest: str | None = None, with_features: bool = True) -> Tokens:
    """Read a stored `tokens.parquet`.

    Args:
        storage, key: where the file is.
        digest: blake3 the file must have, from the manifest.
        with_features: if False, only the pages of the table columns are fetched and checked, each by its checksum.

    Raises:
        ArtifactError: the file is malformed or damaged.
    """
    name = f"{storage.url}/{key}"
    source: Any = io.BytesIO(storage.read(key)) if with_features else _Ranges(storage, key)
    if with_features and digest is not None and digest_of(source.getbuffer()) != digest:
        raise ArtifactError(
            f"{name}: the bytes do not match their digest; delete the artifact and index the video again"
        )
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True)
        about = json.loads(file.schema_arrow.metadata[b"sttm_tokens"])
        table = file.read(columns=[*_TABLE, *(["vector"] if with_features else [])])
        if about["version"] != 1 or about["dtype"] != "bfloat16":
            raise ValueError(f"format version {about['version']}, dtype {about['dtype']}")
        return _tokens(table, about["dim"], tuple(about["grid"]), with_features)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{name} is damaged: {error}; delete the artifact and index the video again") from None


def export_tokens(tokens: Tokens) -> bytes:
    """A Parquet table for analytics: the same columns, the vector as Arrow's fixed-shape tensor of float16 [C].

    float16 overflows beyond 65504 and rounds below 6e-5, which bfloat16 does not; for exact bytes use the artifact.
    """
    if tokens.features is None:
        raise ValueError("the tokens were read without their features")
    vectors = tokens.features.to(torch.float16)
    flat = pa.array(vectors.flatten().numpy(), pa.float16())
    kind = pa.fixed_shape_tensor(pa.float16(), [vectors.shape[1]])
    storage = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    columns = {name: tokens.boxes[:, i].numpy() for i, name in enumerate(_BOX)}
    columns |= {name: getattr(tokens, name).numpy() for name in ("patches", "index", "seconds")}
    out = io.BytesIO()
    pq.write_table(pa.table({**columns, "vector": pa.ExtensionArray.from_storage(kind, storage)}), out)
    return out.getvalue()


def _tokens(table: pa.Table, dim: int, grid: Any, with_features: bool) -> Tokens:
    columns = {name: torch.from_numpy(table.column(name).to_numpy().copy()) for name in _TABLE}
    features = None
    if with_features:
        vectors = table.column("vector").combine_chunks()
        if vectors.type != pa.binary(2 * dim) or vectors.null_count:
            raise ValueError(f"vectors are {vectors.type}, expected {2 * dim} bytes each")
        data = np.frombuffer(vectors.buffers()[1], np.uint8, len(vectors) * 2 * dim, vectors.offset * 2 * dim)
        features = torch.from_numpy(data.copy()).view(torch.bfloat16).view(-1, dim)
    boxes = torch.stack([columns[name] for name in _BOX], dim=1)
    return Tokens(boxes, columns["patches"], columns["index"], columns["seconds"], grid, features)


class _Ranges(io.RawIOBase):
    """An object as a seekable file, for a reader that wants few ranges of it."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage, self.key, self.length, self.place = storage, key, storage.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.length)[whence]
        return self.place

    def read(self, size: int = -1) -> bytes:
        end = self.length if size is None or size < 0 else min(self.length, self.place + size)
        data = self.storage.read(self.key, self.place, end) if end > self.place else b""
        self.place += len(data)
        return data
