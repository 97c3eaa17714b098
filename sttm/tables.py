"""The one reader of tables that users write: Parquet, CSV, JSON (a list of objects) and JSON lines, on any fsspec URL.

    table = read_table("s3://bucket/questions.csv")
    table.require("video", "question")
    for number, row in table.rows:
        video, options = text(row, "video"), texts(row, "options")

A table is not trusted. A row that cannot be parsed becomes one `BadRow` and costs no other row; what is wrong with the
whole file is a `TableError`. The functions `text`, `texts` and `whole` read one cell of a row.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sttm.csv_records import parse_csv
from sttm.errors import SttmError
from sttm.urls import extension_of, open_filesystem, redact_url

Row = dict[str, Any]
_MAX_BYTES, _MAX_ROWS = 1 << 30, 10_000_000
_EXACT_FLOAT = 2**53


class TableError(SttmError):
    """A table as a whole cannot be used: it is missing, malformed, too large, or lacks a column."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be parsed.

    Attributes:
        number: number of the row, from 1 on; in JSON lines the number of the line.
        cause: what is wrong with the row, in one sentence without a full stop.
    """

    number: int
    cause: str


@dataclass(frozen=True)
class Table:
    """The rows of one file.

    Attributes:
        url: where the table was read from, without credentials.
        columns: names of all columns in the file; None where no row names them (JSON without a usable row).
        rows: number (from 1 on; in JSON lines the number of the line) and cells by column of each usable row, in order.
        bad_rows: the rows that cannot be parsed, in order.
    """

    url: str
    columns: tuple[str, ...] | None
    rows: list[tuple[int, Row]]
    bad_rows: list[BadRow]

    def require(self, *names: str) -> None:
        """Check that the table has these columns.

        Raises:
            TableError: a column is missing; the message lists the columns that were found.
        """
        for name in names:
            if self.columns is not None and name not in self.columns:
                found = ", ".join(self.columns)[:500] or "none"
                raise TableError(f"{self.url} has no column {name!r}; columns found: {found}")


def read_table(url: str, only: Sequence[str] | None = None, storage_options: dict[str, Any] | None = None) -> Table:
    """Read a whole table. The ending of its name says the format: one of `EXTENSIONS`.

    Args:
        url: local path or fsspec URL.
        only: the columns of a Parquet file that are read; None reads all. The other formats always give all columns.
        storage_options: extra arguments of the fsspec filesystem, e.g. an endpoint.

    Raises:
        CorpusError: no fsspec filesystem serves the URL.
        TableError: the file is missing, malformed, too large, or of an unknown format.
    """
    shown = redact_url(url)
    filesystem, path = open_filesystem(url, storage_options)
    extension = extension_of(path)
    if extension not in EXTENSIONS:
        raise TableError(f"{shown}: unknown format {extension!r}; known: {', '.join(EXTENSIONS)}")
    data = _fetch(filesystem, path, shown)
    try:
        columns, parsed = _parquet(data, only) if extension == ".parquet" else _TEXT_PARSERS[extension](data)
    except (ValueError, OSError, RecursionError, csv.Error) as error:  # pyarrow raises ValueErrors and OSErrors
        hint = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise TableError(f"{shown} cannot be parsed as {extension}: {error}{hint}") from None
    rows = [(number, row) for number, row in parsed if isinstance(row, dict)]
    bad_rows = [BadRow(number, cause) for number, cause in parsed if isinstance(cause, str)]
    return Table(shown, columns, rows, bad_rows)


def _fetch(filesystem: Any, path: str, shown: str) -> bytes:
    """The bytes of a file that is not too large. At most the allowed size is read, whatever the server says."""
    try:
        size = filesystem.info(path).get("size")
        if size is None or size <= _MAX_BYTES:
            with filesystem.open(path, "rb") as file:
                data: bytes = file.read(_MAX_BYTES + 1)
            size = len(data)
    except MemoryError:
        raise
    except Exception as error:  # clients of object stores raise exceptions of their own libraries
        cause = getattr(error, "strerror", None) or ("no such file" if isinstance(error, FileNotFoundError) else None)
        cause = cause or type(error).__name__
        raise TableError(f"cannot read {shown}: {cause}; check the path and the credentials") from error
    if size > _MAX_BYTES:
        raise TableError(f"{shown} has {size} bytes, more than the {_MAX_BYTES} that are allowed; split it")
    return data


# A parser gives the names of the columns (None if the file does not name them) and, for each row, the number and either
# the cells or the reason why there are none.
_Parsed = tuple[tuple[str, ...] | None, list[tuple[int, Row | str]]]


def _json_lines(data: bytes) -> _Parsed:
    lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1)
    return _with_columns([(number, _json_line(line)) for number, line in lines if line.strip()])


def _json_line(line: bytes) -> Row | str:
    try:
        return _object(json.loads(line.decode("utf-8"), parse_constant=_constant))
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {error}"


def _json(data: bytes) -> _Parsed:
    content = json.loads(data.decode("utf-8-sig"), parse_constant=_constant)
    if not isinstance(content, list):
        raise ValueError(f"it holds a {type(content).__name__}, not a list of rows")
    return _with_columns([(number, _object(value)) for number, value in enumerate(content, 1)])


def _constant(name: str) -> float | None:
    """pandas writes NaN for a cell that is missing."""
    return None if name == "NaN" else float(name)


def _object(value: Any) -> Row | str:
    if isinstance(value, dict):
        return value
    return f"a row is a JSON object with named values, this is a {type(value).__name__}"


def _with_columns(rows: list[tuple[int, Row | str]]) -> _Parsed:
    columns = tuple(dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row))
    return columns or None, rows


def _parquet(data: bytes, only: Sequence[str] | None) -> _Parsed:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
    columns, metadata = tuple(file.schema_arrow.names), file.metadata
    unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if metadata.num_rows > _MAX_ROWS or unpacked > _MAX_BYTES:
        raise ValueError(f"{metadata.num_rows} rows of {unpacked} bytes, over {_MAX_ROWS} or {_MAX_BYTES}; split it")
    wanted = columns if only is None else [name for name in columns if name in only]
    table = _without_nan(file.read(columns=list(wanted), use_threads=False))
    try:
        return columns, list(enumerate(table.to_pylist(), 1))
    except (ValueError, OverflowError):  # a cell has no Python value, such as text that is not UTF-8
        return columns, [(index + 1, _parquet_row(table, index)) for index in range(table.num_rows)]


def _without_nan(table: Any) -> Any:
    """The table with null in place of NaN, by which pandas stands for a cell that is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, column in enumerate(table.columns):
        if pa.types.is_floating(column.type):
            known = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            table = table.set_column(index, table.column_names[index], known)
    return table


def _parquet_row(table: Any, index: int) -> Row | str:
    try:
        row: Row = table.slice(index, 1).to_pylist()[0]
        return row
    except (ValueError, OverflowError) as error:
        return f"a cell cannot be read: {error}"


_TEXT_PARSERS: dict[str, Callable[[bytes], _Parsed]] = {
    ".csv": parse_csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
EXTENSIONS = (".parquet", *_TEXT_PARSERS)
"""Endings of the file names that are tables."""


def text(row: Row, *names: str) -> str:
    """The first of the named cells that is not empty, as text.

    A number is written out: a whole one without a fraction even if its column holds floats, as `1.0` where pandas has
    met a missing number. Bytes are text in UTF-8.

    Raises:
        ValueError: all the cells are empty or missing, or the value is neither text nor a number.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{name} is {value[:40]!r}, which is not text in UTF-8") from None
        if isinstance(value, float | Decimal) and -_EXACT_FLOAT < value < _EXACT_FLOAT and value == int(value):
            value = int(value)
        if value is not None and value != "" and value == value:
            if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
                raise ValueError(f"{name} is a {type(value).__name__}, not text")
            return str(value)
    raise ValueError(f"no {names[0]}")


def texts(row: Row, name: str) -> tuple[str, ...]:
    """A list of texts, which may also be written as JSON into a text cell; () where the cell is missing or empty.

    Raises:
        ValueError: the value is not a list of texts or numbers.
    """
    value = row.get(name)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{name} is not a list: {value[:80]!r}") from None
    if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
        raise ValueError(f"{name} is not a list of texts: {value!r:.80}")
    return tuple(str(item) for item in value)


def whole(row: Row, name: str) -> int:
    """A whole number, which may also be written as text, as in CSV.

    Raises:
        ValueError: the cell is missing or holds no whole number.
    """
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str | float) or str(value).strip() == "":
        raise ValueError(f"no {name}" if value in (None, "") else f"{name} is {value!r:.80}, not a whole number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"{name} is {value!r:.80}, not a whole number")
    return int(number)
