"""`tokens.parquet`: rows and vectors come back, the table alone is cheap, damage is noticed."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from store_samples import H, W, make_cache, make_tokens

from sttm.errors import ArtifactError
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage
from sttm.store.tokens import ROWS_PER_GROUP, export_tokens, read_tokens, write_tokens


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("frames", [6, 300])
def test_rows_and_vectors_come_back(storage: Storage, dtype: torch.dtype, frames: int) -> None:
    cache = make_cache(layers=1, merge_layer=0, head_dim=4, frames=frames)
    t, y, x = cache.boxes[:, :3].unbind(1)
    features = torch.randn(len(t), 33).to(dtype)
    index = (t * H + y) * W + x
    data = write_tokens(cache.boxes, cache.patches, index, cache.frame_seconds, features, cache.grid)
    storage.put("t", data)
    tokens = read_tokens(storage, "t", digest_of(data))
    assert torch.equal(tokens.boxes, cache.boxes)
    assert torch.equal(tokens.patches, cache.patches)
    assert torch.equal(tokens.index, index)
    assert torch.equal(tokens.seconds, cache.frame_seconds[t.long()])
    assert tokens.features is not None
    assert torch.equal(tokens.features, features.bfloat16())
    assert tokens.grid == cache.grid
    groups = pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups
    assert groups == -(-len(t) // ROWS_PER_GROUP)


def test_the_table_is_read_without_the_vectors(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(layers=1, merge_layer=0, head_dim=4, frames=40)
    data = make_tokens(cache, dim=1024)
    storage.put("t", data)
    fetched: list[int] = []
    read = storage.read
    monkeypatch.setattr(storage, "read", lambda *a: (fetched.append(len(got := read(*a))), got)[1])
    tokens = read_tokens(storage, "t", with_features=False)
    assert tokens.features is None
    assert torch.equal(tokens.boxes, cache.boxes)
    assert 0 < sum(fetched) < len(data) / 5


def test_one_flipped_bit_anywhere_is_noticed(storage: Storage) -> None:
    data = make_tokens(make_cache(layers=1, merge_layer=0, head_dim=4, frames=1), dim=4)
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        storage.put("t", damaged)
        with pytest.raises(ArtifactError, match="/t: the bytes do not match"):
            read_tokens(storage, "t", digest_of(data))


def test_a_damaged_table_never_brings_down_the_reader(storage: Storage) -> None:
    data = make_tokens(make_cache(layers=1, merge_layer=0, head_dim=4, frames=1), dim=4)
    whole = Storage(str(storage.url))
    whole.put("whole", data)
    truth = read_tokens(whole, "whole", with_features=False)
    for position in range(0, len(data), 13):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        storage.put("t", damaged)
        try:
            tokens = read_tokens(storage, "t", with_features=False)
        except ArtifactError:
            continue
        assert torch.equal(tokens.boxes, truth.boxes), "a flip in the vectors or in unread metadata only"


@pytest.mark.parametrize("data", [b"", b"PAR1", b"\0" * 100])
def test_what_is_no_parquet_is_refused(storage: Storage, data: bytes) -> None:
    storage.put("t", data)
    with pytest.raises(ArtifactError, match=r"/t .*delete the artifact"):
        read_tokens(storage, "t")


def test_every_reader_of_parquet_can_open_it() -> None:
    data = make_tokens(make_cache(), dim=8)
    schema = pq.read_schema(io.BytesIO(data))
    assert schema.names == ["frame", "y0", "x0", "y1", "x1", "patches", "index", "seconds", "vector"]
    assert str(schema.field("vector").type) == "fixed_size_binary[16]"


def test_the_export_is_a_tensor_column_that_analytics_tools_read(storage: Storage) -> None:
    storage.put("t", make_tokens(make_cache(), dim=8))
    tokens = read_tokens(storage, "t")
    table = pq.read_table(io.BytesIO(export_tokens(tokens)))
    assert (
        str(table.schema.field("vector").type) == "extension<arrow.fixed_shape_tensor[value_type=halffloat, shape=[8]]>"
    )
    vectors = torch.from_numpy(table.column("vector").combine_chunks().to_numpy_ndarray().copy())
    assert tokens.features is not None
    assert torch.equal(vectors, tokens.features.half())
    assert table.column("frame").to_pylist() == tokens.boxes[:, 0].tolist()
    with pytest.raises(ValueError, match="without their features"):
        export_tokens(read_tokens(storage, "t", with_features=False))
