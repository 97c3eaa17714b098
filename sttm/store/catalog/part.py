"""A part of the catalog: a table as one Parquet object that never changes, every byte checked when it is read."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sttm.errors import ArtifactError
from sttm.store.catalog.arrow_rows import NULLABLE, REQUIRED, STORED_SCHEMA
from sttm.store.catalog.hashes import Hashes, distinct, is_among
from sttm.store.sealed import digest_of
from sttm.store.storage import Storage

CURE = "delete the catalog folder; `python -m jobs.store repair` writes it again from the manifests"
_ROWS_PER_GROUP = 1024  # what is decoded at least to see one row
_REPEATED = ["kind", "status", "recipe_digest", "error_code", "run_id"]  # columns of few different values
_WRITING = {
    "compression": "zstd",
    "row_group_size": _ROWS_PER_GROUP,
    "use_dictionary": _REPEATED,
    "write_statistics": False,
}


@dataclass(frozen=True)
class Part:
    """Rows that were appended together.

    Attributes:
        key: key of the object.
        size_bytes: size of the object.
        digest: blake3 of the object.
        rows: number of rows.
        version: version of the catalog that added the rows; 0 in catalogs of older programs.
        is_recovered: whether the rows were made of manifests, long after they should have come.
        last_usable: by recipe digest, the id of the video whose usable row of this recipe comes last.
    """

    key: str
    size_bytes: int
    digest: str
    rows: int
    version: int
    is_recovered: bool
    last_usable: Mapping[str, str]


def write_table(storage: Storage, key: str, table: pa.Table) -> tuple[int, str]:
    """Write a table as one object.

    Returns:
        Size of the object in bytes, and its blake3 digest in hex.

    Raises:
        StoreError: the storage refuses the write.
    """
    out = io.BytesIO()
    pq.write_table(table, out, **_WRITING)
    data = out.getvalue()
    storage.put(key, data)
    return len(data), digest_of(data)


def read_table(storage: Storage, key: str, digest: str, schema: pa.Schema, videos: Hashes | None = None) -> pa.Table:
    """Read those columns of a schema that a stored table has, cast to the types of the schema.

    Args:
        storage: objects of the store.
        key: key of the table.
        digest: blake3 of the object.
        schema: columns to read.
        videos: hashes of videos, sorted; of a table that is sorted by `video_hash`, as few rows as possible are read,
            with all rows of these videos among them. None reads all rows.

    Raises:
        MissingObjectError: there is no such object.
        ArtifactError: the object is not the one that was written, or is no table of this form.
    """
    data = storage.read(key)
    try:
        if digest_of(data) != digest:
            raise ValueError("the bytes do not match their digest")
        # Use ParquetFile, because read_table would import pyarrow.dataset, which takes long.
        file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
        there = {*file.schema_arrow.names, *REQUIRED}  # other versions may write further or fewer columns
        names = [name for name in schema.names if name in there]
        if videos is None:
            table = file.read(names, use_threads=False)
        else:
            found = file.read(["video_hash"], use_threads=False)["video_hash"].to_numpy()
            groups = distinct(np.flatnonzero(is_among(found, videos)) // _ROWS_PER_GROUP)
            if not len(groups):
                return schema.empty_table()
            table = file.read_row_groups(groups.tolist(), names, use_threads=False)
        return _checked(table, names, schema)
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
        raise ArtifactError(f"{storage.url}/{key} is damaged: {error}; {CURE}") from None


def _checked(table: pa.Table, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    table, wanted = table.select(names), pa.schema([schema.field(name) for name in names])
    table = table if table.schema.equals(wanted) else table.cast(wanted)
    if missing := [name for name in names if table[name].null_count and name not in NULLABLE]:
        raise ValueError(f"a value of {missing} is missing")
    return table


def stored_schema(columns: Sequence[str] | None) -> pa.Schema:
    """The schema of these columns and of those that order rows; None takes all columns."""
    if columns is None:
        return STORED_SCHEMA
    wanted = {*columns, "video_hash", "sequence"}
    return pa.schema([field for field in STORED_SCHEMA if field.name in wanted])
