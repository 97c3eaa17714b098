"""Catalog rows as Arrow tables, and the two columns by which stored rows are sorted.

`video_hash` brings the rows of one video together; `sequence` says in which order rows were added to the catalog, which
no clock of a writer can change.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sttm.store.catalog.hashes import Hashes, is_among, text_hashes
from sttm.store.catalog.row import CatalogRow

_MAP = pa.map_(pa.string(), pa.float64())
SCHEMA = pa.schema(
    {
        **dict.fromkeys(("video_id", "uri", "name", "status", "recipe_digest", "source_key", "identity"), pa.string()),
        "content_digest": pa.string(),
        "source_bytes": pa.int64(),
        "duration_s": pa.float64(),
        **dict.fromkeys(("frames", "frames_asked", "frames_left_out"), pa.int64()),
        **dict.fromkeys(("kv_bytes", "tokens_bytes", "tokens_before", "tokens_after"), pa.int64()),
        **dict.fromkeys(("retained_ratio", "kl_mean", "top1_agreement"), pa.float64()),
        **dict.fromkeys(("thresholds", "timings_s"), _MAP),
        **dict.fromkeys(("error_code", "error_message", "run_id"), pa.string()),
        "attempts": pa.int64(),
        "created_at": pa.string(),
    }
)
ORDER_SCHEMA = pa.schema({"video_hash": pa.uint64(), "sequence": pa.int64()})
STORED_SCHEMA = pa.schema([*SCHEMA, *ORDER_SCHEMA])
REQUIRED = SCHEMA.names[:6]
NULLABLE = ("kl_mean", "top1_agreement")

_DEFAULTS = CatalogRow("", "", "", "ok", "", "")
_VERSION_STEP = 1 << 24  # more than the rows of one append
_RECOVERED = 1 << 62


def first_sequence(version: int, is_recovered: bool = False) -> int:
    """The `sequence` of the first row that a version of the catalog added.

    Args:
        version: number of the version.
        is_recovered: whether the rows were made of manifests, long after the runs that should have added them. Nobody
            knows when those runs were, so recovered rows come before all other rows.
    """
    return version * _VERSION_STEP - (_RECOVERED if is_recovered else 0)


def versions(table: pa.Table) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """The version of the catalog that added each row, by its `sequence`; int64 [rows]."""
    sequence = table["sequence"].to_numpy()
    return np.asarray(np.where(sequence < 0, sequence + _RECOVERED, sequence) // _VERSION_STEP)


def table_of(rows: Sequence[CatalogRow]) -> pa.Table:
    """The rows as a table of `SCHEMA` with `video_hash`."""
    columns = {field.name: _column([getattr(row, field.name) for row in rows], field.type) for field in SCHEMA}
    return with_hashes(pa.table(columns, schema=SCHEMA))


def with_hashes(table: pa.Table) -> pa.Table:
    """The table with the column `video_hash`, which is computed from the ids if it is not there."""
    if "video_hash" in table.column_names:
        return table
    return table.append_column("video_hash", pa.array(text_hashes(table["video_id"].to_pylist())))


def with_sequence(table: pa.Table, first: int) -> pa.Table:
    """The table with the column `sequence`, which counts its rows from `first` on."""
    return table.append_column("sequence", pa.array(range(first, first + table.num_rows), pa.int64()))


def rows_of(table: pa.Table) -> list[CatalogRow]:
    """The rows of a table; a column that it lacks has the default of the row's field, or is empty."""
    names = set(table.column_names)
    there = [name for name in SCHEMA.names if name in names]
    # Much faster than `to_pylist`; both give maps as lists of pairs.
    columns = {
        name: [dict(pairs) for pairs in values] if pa.types.is_map(SCHEMA.field(name).type) else values
        for name, values in table.select(there).to_pydict().items()
    }
    absent: dict[str, Any] = {name: "" for name in REQUIRED if name not in columns}
    return [CatalogRow(**absent, **dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def last_usable(rows: Iterable[CatalogRow]) -> dict[str, str]:
    """For each recipe, by its digest, the id of the video whose usable row comes last."""
    return {row.recipe_digest: storable(row.video_id) for row in rows if row.status == "ok"}


def complete(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns of a schema, in their order.

    Another version of the program may have written a table that lacks some of the columns. All rows then get the
    default of the field of `CatalogRow`.
    """
    if table.schema.equals(schema):
        return table
    there = set(table.column_names)
    for field in schema:
        if field.name not in there:
            values = [storable(getattr(_DEFAULTS, field.name))] * table.num_rows
            table = table.append_column(field, pa.array(values, field.type))
    return table.select(schema.names)


def of_videos(table: pa.Table, videos: Hashes) -> pa.Table:
    """The rows of some videos, in the order of the table; `videos` has the hashes of the videos, sorted."""
    places = np.flatnonzero(is_among(table["video_hash"].to_numpy(), videos)).tolist()
    return table.take(pa.array(places, pa.int64()))  # of a list: an array of numpy would import a large module


def in_order(table: pa.Table) -> pa.Table:
    """The rows in the order in which they were added."""
    return table.sort_by([("sequence", "ascending")])


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_map(kind):
        values = [list(value.items()) for value in values]
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([storable(dict(value) if isinstance(value, list) else value) for value in values], kind)


def storable(value: Any) -> Any:
    """A value in the form that Arrow takes: a map as pairs; in text, a byte that is not UTF-8 as `\\udcff`."""
    if isinstance(value, Mapping):
        return [(storable(name), number) for name, number in value.items()]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
