"""Read CSV so that a faulty record costs no other.

Faults are an oversized cell, a quote that is never closed, more cells than columns, and bytes that are not UTF-8.
"""

import csv
import io
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

_MAX_CELL = 131_072  # characters of one CSV cell


def parse_csv(data: bytes) -> tuple[tuple[str, ...], list[tuple[int, dict[str, Any] | str]]]:
    """Read a CSV file whose first record names the columns.

    Args:
        data: the bytes of the file.

    Returns:
        The names of the columns and, for each record that is not empty, its number from 1 on and either its cells by
        column or the reason why it has none.

    Raises:
        UnicodeDecodeError: the header, or every record, is not UTF-8.
        ValueError: the header has a quote that is never closed.
    """
    try:
        content, fault = data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        content, fault = data.decode("utf-8-sig", "surrogateescape"), error
    # The limit of Python's reader would end the whole file, where `_row` refuses one cell. It holds for the process.
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))
    records = _records(list(io.StringIO(content, newline="")))
    header = next((record for record in records if record), [])
    if isinstance(header, str):
        raise ValueError(f"the header: {header}")
    if fault and not _is_utf8(header):
        raise fault
    filled = (record for record in records if record)
    parsed = [(number, _row(header, record, fault)) for number, record in enumerate(filled, 1)]
    if fault and not any(isinstance(row, dict) for _, row in parsed):
        raise fault
    return tuple(header), parsed


def _records(lines: list[str]) -> Iterator[list[str] | str]:
    """The cells of each record, or the reason why it has none. An empty line gives a record without cells.

    A quote that is never closed takes following lines into its cell, up to the next quote or the end of the file. It
    costs only the line that it is in.
    """
    begun = 0
    while begun < len(lines):
        first = begun
        reader = csv.reader(map(lines.__getitem__, range(first, len(lines))))
        for cells in reader:
            end = first + reader.line_num
            if (end > begun + 1 or end == len(lines)) and _has_open_quote(lines[begun:end]):
                yield "a quote is opened and never closed"
                begun += 1
                break
            yield cells
            begun = end


def _has_open_quote(record: list[str]) -> bool:
    """Whether the lines of one record have a quote that is not closed, or closed by a quote that opens another cell."""
    if len(record) == 1:
        return len(list(csv.reader([*record, "x"]))) == 1
    try:
        return not list(csv.reader(record, strict=True))
    except csv.Error:
        return True


def _row(header: list[str], record: list[str] | str, fault: UnicodeDecodeError | None) -> dict[str, Any] | str:
    """The cells of a record by column, or the reason why it has none.

    Args:
        header: the names of the columns.
        record: the cells of the record, or the reason why it has none.
        fault: why the file is not UTF-8; None if it is. Then each byte that is not UTF-8 is a lone surrogate.
    """
    if isinstance(record, str):
        return record
    longest = max(map(len, record))
    if longest > _MAX_CELL:
        return f"a cell has {longest} characters, more than the {_MAX_CELL} that are allowed"
    if fault and not _is_utf8(record):
        return "the line is not UTF-8; save the table as UTF-8"
    if len(record) > len(header):
        return "the line has more cells than the header"
    return dict(zip_longest(header, record))


def _is_utf8(cells: list[str]) -> bool:
    return all(cell.isascii() or not any("\ud800" <= char <= "\udfff" for char in cell) for cell in cells)
