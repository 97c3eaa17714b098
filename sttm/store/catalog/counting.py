"""Which rows of a table count, decided column by column; only videos with a real history become Python objects."""

from typing import Any

import numpy as np
import pyarrow as pa

from sttm.store.catalog.arrow_rows import rows_of
from sttm.store.catalog.hashes import Hashes
from sttm.store.catalog.history import judge, without_repeats

# What `counts` looks at.
JUDGED_COLUMNS = ("video_id", "status", "recipe_digest", "source_key", "identity", "content_digest", "error_code")


def counts(table: pa.Table) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Which rows count, bool [rows], by the rules of `judge`.

    Args:
        table: all rows of some videos with `JUDGED_COLUMNS`, sorted by `video_hash` and `sequence`.
    """
    if not table.num_rows:
        return np.zeros(0, bool)
    video, status = table["video_hash"].to_numpy(), _codes(table, "status")
    recipe, content = _codes(table, "recipe_digest"), _codes(table, "content_digest")
    starts = _starts(video)
    sizes = np.diff(np.append(starts, len(video)))
    is_ok = status == _code(table, "status", "ok")
    # Two plain cases: one row, and usable rows of one content under different recipes.
    same_content = np.minimum.reduceat(content, starts) == np.maximum.reduceat(content, starts)
    order = np.lexsort((recipe, video))
    repeats = (video[order][1:] == video[order][:-1]) & (recipe[order][1:] == recipe[order][:-1])
    has_repeat = np.zeros(len(video), bool)
    has_repeat[order[1:][repeats]] = True
    all_ok = np.logical_and.reduceat(is_ok, starts) & same_content & ~np.logical_or.reduceat(has_repeat, starts)
    is_plain = np.repeat((sizes == 1) | all_ok, sizes)
    found = is_plain & (status != _code(table, "status", "removed"))
    rest = np.flatnonzero(~is_plain)
    rows = rows_of(table.select(JUDGED_COLUMNS).take(rest))
    place = {id(row): number for row, number in zip(rows, rest, strict=True)}
    found[[place[id(row)] for row in judge(rows)[0]]] = True
    return found


def with_a_history(table: pa.Table, rows: int = 2) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Which rows are of videos with at least so many rows, bool [rows].

    Args:
        table: all rows of some videos, sorted by `video_hash`.
        rows: the fewest rows.
    """
    video = table["video_hash"].to_numpy()
    sizes = np.diff(np.append(_starts(video), len(video)))
    return np.asarray(np.repeat(sizes, sizes) >= rows)


def drop_repeats(table: pa.Table) -> pa.Table:
    """Drop the rows of a table that `without_repeats` drops; the table is sorted by `video_hash` and `sequence`."""
    some = np.flatnonzero(with_a_history(table, 3))
    rows = rows_of(table.select(JUDGED_COLUMNS).take(some))
    kept = {id(row) for row in without_repeats(rows)}
    dropped = [number for row, number in zip(rows, some, strict=True) if id(row) not in kept]
    return table.take(np.delete(np.arange(table.num_rows), dropped)) if dropped else table


def _starts(video: Hashes) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Where the rows of another video begin."""
    return np.flatnonzero(np.append(True, video[1:] != video[:-1])[: len(video)])


def _codes(table: pa.Table, column: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """One number for each different value of a column, in the order in which the values come."""
    return table[column].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _code(table: pa.Table, column: str, value: str) -> int:
    """The number that `_codes` gives a value; -1 if no row has it."""
    values = table[column].combine_chunks().dictionary_encode().dictionary.to_pylist()
    return values.index(value) if value in values else -1
