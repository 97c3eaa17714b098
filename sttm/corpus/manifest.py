"""A table of videos: one file, or a folder or glob of Parquet parts as Spark and Ray write them.

The table has the column `uri` (URL or path) and, optionally, `id`. A row that names no video costs no other row: it is
yielded with the reason.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin

from sttm.errors import CorpusError
from sttm.tables import Row, Table, TableError, read_table, text
from sttm.urls import is_http, is_local, open_filesystem, path_on, redact_url

PART_EXTENSION = ".parquet"
_LOGS = ((re.compile("_delta_log"), "Delta Lake"), (re.compile(r".*\.metadata\.json"), "Iceberg"))
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class ManifestRow(NamedTuple):
    """One row of a manifest.

    Attributes:
        table: URL of the file that the row is in, without credentials.
        number: number of the row in that file, from 1 on.
        uri: absolute URL of the video, exactly as the row has it; empty if there is a fault.
        stripped_uri: absolute URL without the white space around the cell; tried if no file exists under `uri`.
        video_id: the id that the row gives; None if it gives none.
        fault: why the row names no video; empty if it does.
    """

    table: str
    number: int
    uri: str = ""
    stripped_uri: str = ""
    video_id: str | None = None
    fault: str = ""


def read_manifest(url: str, storage_options: dict[str, Any] | None = None) -> Iterator[ManifestRow]:
    """Read the rows of one table. A relative path in it counts from the folder of the table.

    Args:
        url: local path or fsspec URL of the table.
        storage_options: extra arguments of the fsspec filesystem, e.g. an endpoint.

    Raises:
        CorpusError: the table as a whole cannot be used.
    """
    fs, path = open_filesystem(url, storage_options)
    yield from _rows(_read(url, storage_options), fs, url if is_http(url) else posixpath.dirname(path))


def read_parts(
    fs: Any, names: Sequence[str], root: str, base: str, storage_options: dict[str, Any] | None = None
) -> Iterator[ManifestRow]:
    """Read the parts of one table in the order of their names.

    Args:
        fs: the fsspec filesystem of the parts.
        names: paths of the parts on the filesystem.
        root: the folder whose subfolders may be partitions such as `id=7`, each of which is a column.
        base: the folder that relative paths in the table count from.
        storage_options: extra arguments of the fsspec filesystem, e.g. an endpoint.

    Raises:
        CorpusError: a part cannot be used.
    """
    for name in sorted(names):
        columns = _partition_columns(name[len(root) :])
        yield from _rows(_read(str(fs.unstrip_protocol(name)), storage_options, columns), fs, base, columns)


def parts_of(names: Sequence[str], root: str, shown: str) -> list[str]:
    """The files that are parts of a table: Parquet files, without markers such as `_SUCCESS` and `_metadata`.

    Args:
        names: paths of all files below the folder.
        root: the folder.
        shown: the folder for messages.

    Raises:
        CorpusError: the folder belongs to a table format whose log says which parts are valid.
    """
    found = []
    for name in names:
        places = [part for part in name[len(root) :].split("/") if part]
        for log, kind in _LOGS:
            if any(map(log.fullmatch, places)):
                raise CorpusError(f"{shown} is a table of {kind}; write its rows as plain Parquet files")
        is_marker = any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in places)
        if not is_marker and name.lower().endswith(PART_EXTENSION):
            found.append(name)
    return found


def _read(url: str, storage_options: dict[str, Any] | None, columns: Iterable[str] = ()) -> Table:
    try:
        table = read_table(url, ("uri", "id"), storage_options)
        if "uri" not in columns:
            table.require("uri")
    except TableError as error:
        raise CorpusError(f"the manifest cannot be used: {error}") from None
    return table


def _partition_columns(path: str) -> dict[str, str]:
    """`/day=1/id=a%20b/part-0.parquet` -> `{"day": "1", "id": "a b"}`."""
    pairs = (place.partition("=") for place in posixpath.dirname(path).split("/") if "=" in place)
    return {name: unquote(value) for name, _, value in pairs if value != _NULL_PARTITION}


def _rows(table: Table, fs: Any, base: str, columns: dict[str, str] | None = None) -> Iterator[ManifestRow]:
    numbered: list[tuple[int, Row | str]] = [*table.rows, *((bad.number, bad.cause) for bad in table.bad_rows)]
    for number, cells in sorted(numbered, key=lambda pair: pair[0]):
        if isinstance(cells, str):
            yield ManifestRow(table.url, number, fault=cells)
            continue
        row: Row = {**(columns or {}), **cells}
        try:
            cell = row.get("uri")
            uri = text(row, "uri") if isinstance(cell, str | bytes) and cell else ""
            if not uri.strip():
                raise ValueError("it has no uri; it needs a URL or path in column 'uri'")
            video_id = None if row.get("id") in (None, "") else text(row, "id")
            exact = _absolute(fs, base, uri)
            stripped = exact if uri == uri.strip() else _absolute(fs, base, uri.strip())
            yield ManifestRow(table.url, number, exact, stripped, video_id)
        except ValueError as error:
            yield ManifestRow(table.url, number, fault=str(error))


def _absolute(fs: Any, base: str, uri: str) -> str:
    """The URI of a row made absolute. A path is one on the filesystem of the manifest."""
    if "://" in uri and not uri.startswith(("/", ".")):
        return uri
    if is_http(base):
        return urljoin(base, uri)
    if is_local(fs):
        path = uri if uri.startswith("file:") else posixpath.join(base, uri)
        return str(fs.unstrip_protocol(path_on(fs, path)))
    if uri.startswith("/"):
        return str(fs.unstrip_protocol(uri))
    while uri.startswith(("./", "../")):
        step, _, uri = uri.partition("/")
        base = posixpath.dirname(base) if step == ".." else base
    return str(fs.unstrip_protocol(f"{base}/{uri}"))


def row_uri(table: str, number: int) -> str:
    """The URI under which a row that names no video is recorded, such as `s3://bucket/list.csv:row-7`."""
    return f"{redact_url(table)}:row-{number}"
