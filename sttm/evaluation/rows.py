"""Rows of a file as plain dictionaries: Parquet, JSON lines, a JSON list, or CSV. One bad line costs no other."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sttm.evaluation.questions import QuestionsError, RowError

FileRow = tuple[int, dict[str, Any]]
_MAX_BYTES = 1 << 30


def read_rows(path: Path) -> tuple[list[FileRow], list[RowError]]:
    """(number from 1 on, row) pairs, and an error for each row that cannot be parsed.

    Raises:
        QuestionsError: the file cannot be read, or not as a whole.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise QuestionsError(f"{path}: unknown format {path.suffix!r}; known: {', '.join(_READERS)}")
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise QuestionsError(f"{path} has {size} bytes, over {_MAX_BYTES}; split it")
        rows, errors = [], []
        for number, row in enumerate(reader(path.read_bytes()), 1):
            if isinstance(row, dict):
                rows.append((number, row))
            else:
                errors.append(RowError(number, "", row))
    except OSError as error:  # pyarrow's own errors of the file are OSErrors or ValueErrors
        raise QuestionsError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise QuestionsError(f"{path} cannot be parsed as {path.suffix}: {error}") from error
    return rows, errors


def _jsonl(data: bytes) -> Iterator[dict[str, Any] | str]:
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        if not line.strip():
            yield "the line is empty"
            continue
        try:
            yield _object(json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            yield f"the line is not JSON: {error}"


def _json(data: bytes) -> Iterator[dict[str, Any] | str]:
    content = json.loads(data.decode("utf-8-sig"))
    if not isinstance(content, list):
        raise ValueError(f"it holds a {type(content).__name__}, not a list of rows")
    return (_object(row) for row in content)


def _csv(data: bytes) -> Iterator[dict[str, Any] | str]:
    for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")):
        yield "the line has more cells than the header" if None in row else row


def _parquet(data: bytes) -> Iterator[dict[str, Any] | str]:
    import pyarrow.parquet as pq

    return iter(pq.ParquetFile(io.BytesIO(data)).read(use_threads=False).to_pylist())


def _object(value: Any) -> dict[str, Any] | str:
    return (
        value if isinstance(value, dict) else f"a row is an object with named values, this is a {type(value).__name__}"
    )


_READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
