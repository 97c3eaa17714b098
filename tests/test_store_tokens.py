"""`tokens.parquet`: rows and vectors come back, nothing damaged or forged is used."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from store_samples import H, W, make_cache, make_tokens

from sttm.errors import ArtifactError
from sttm.store.artifact import StoredFile, read_file
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage
from sttm.store.tokens import ROWS_PER_GROUP, decode_tokens, export_tokens, write_tokens


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("frames", [6, 300])
def test_rows_and_vectors_come_back(dtype: torch.dtype, frames: int) -> None:
    cache = make_cache(layers=1, merge_layer=0, head_dim=4, frames=frames)
    t, y, x = cache.boxes[:, :3].unbind(1)
    features = torch.randn(len(t), 33).to(dtype)
    index = (t * H + y) * W + x
    data = write_tokens(cache.boxes, cache.patches, index, cache.frame_seconds, features, cache.grid)
    tokens = decode_tokens(data)
    assert torch.equal(tokens.boxes, cache.boxes)
    assert torch.equal(tokens.patches, cache.patches)
    assert torch.equal(tokens.index, index)
    assert torch.equal(tokens.seconds, cache.frame_seconds[t.long()])
    assert torch.equal(tokens.features, features.bfloat16())
    assert tokens.grid == cache.grid
    groups = pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups
    assert groups == -(-len(t) // ROWS_PER_GROUP)


def test_one_flipped_bit_anywhere_is_noticed(storage: Storage) -> None:
    data = make_tokens(make_cache(layers=1, merge_layer=0, head_dim=4, frames=1), dim=4)
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        storage.put("t", damaged)
        with pytest.raises(ArtifactError, match="/t: the bytes do not match"):
            read_file(storage, StoredFile("t", len(data), digest_of(data)))


def test_a_damaged_table_never_brings_down_the_reader() -> None:
    data = make_tokens(make_cache(layers=1, merge_layer=0, head_dim=4, frames=1), dim=4)
    truth = decode_tokens(data)
    for position in range(0, len(data), 13):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        try:
            tokens = decode_tokens(bytes(damaged))
        except ArtifactError:
            continue
        assert torch.equal(tokens.boxes, truth.boxes), "a flip in the vectors or in unread metadata only"


def forged(column: str | None = None, value: Any = None, **about: Any) -> bytes:
    """A small file with one value in a column, or with other metadata."""
    table = pq.read_table(io.BytesIO(make_tokens(make_cache(layers=1, merge_layer=0, head_dim=4), dim=4)))
    if column is not None:
        changed = pa.array([value, *table.column(column).to_pylist()[1:]])
        if changed.type == pa.int64():
            changed = changed.cast(pa.int32())
        table = table.set_column(table.schema.get_field_index(column), column, changed)
    said = {**json.loads(table.schema.metadata[b"sttm_tokens"]), **about}
    return written(table, json.dumps(said))


def written(table: pa.Table, about: str) -> bytes:
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"sttm_tokens": about}), out, compression="zstd")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: forged("patches", -5), "out of range"),
        (lambda: forged("frame", None), "a value is missing"),
        (lambda: forged("frame", 0.5), "columns are not those"),
        (lambda: forged("frame", 6), "out of range"),
        (lambda: forged("x1", 0), "out of range"),
        (lambda: forged("index", 10**6), "out of range"),
        (lambda: forged("seconds", float("nan")), "out of range"),
        (lambda: forged(grid="abc"), "out of range"),
        (lambda: forged(grid=[6, 7]), "out of range"),
        (lambda: forged(grid=[1 << 20] * 3), "cells"),
        (lambda: forged(dim=0), "out of range"),
        (lambda: forged(dim=8), "columns are not those"),
        (lambda: forged(version=2), "format version 2"),
        (lambda: written(pq.read_table(io.BytesIO(forged())).slice(0, 0), forged_about()), "0 rows"),
        (lambda: written(pq.read_table(io.BytesIO(forged())), "[" * 200_000), "recursion"),
        (lambda: written(pq.read_table(io.BytesIO(forged())), "[]"), "indices"),
    ],
)
def test_a_forged_file_is_refused(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"tokens.parquet is damaged: .*{message}.*index the video again"):
        decode_tokens(data())


def test_a_small_file_that_becomes_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    few = pq.read_table(io.BytesIO(forged()))
    bomb = written(few.take(pa.array(np.zeros(2_000_000, np.int64))), forged_about())
    assert len(bomb) < 300_000
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ArtifactError, match="2000000 rows of 4 numbers in"):
        decode_tokens(bomb)


def forged_about() -> str:
    return pq.read_schema(io.BytesIO(forged())).metadata[b"sttm_tokens"].decode()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"\0" * 100])
def test_what_is_no_parquet_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"file:///t is damaged.*jobs.store rm"):
        decode_tokens(data, "file:///t")


def test_every_reader_of_parquet_can_open_it() -> None:
    data = make_tokens(make_cache(), dim=8)
    schema = pq.read_schema(io.BytesIO(data))
    assert schema.names == ["frame", "y0", "x0", "y1", "x1", "patches", "index", "seconds", "vector"]
    assert str(schema.field("vector").type) == "fixed_size_binary[16]"


def test_the_export_is_a_tensor_column_that_analytics_tools_read() -> None:
    data = make_tokens(make_cache(), dim=8)
    tokens = decode_tokens(data)
    table = pq.read_table(io.BytesIO(export_tokens(tokens)))
    assert (
        str(table.schema.field("vector").type) == "extension<arrow.fixed_shape_tensor[value_type=halffloat, shape=[8]]>"
    )
    vectors = torch.from_numpy(table.column("vector").combine_chunks().to_numpy_ndarray().copy())
    assert torch.equal(vectors, tokens.features.half())
    assert table.column("frame").to_pylist() == tokens.boxes[:, 0].tolist()
