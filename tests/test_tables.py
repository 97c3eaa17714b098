"""Tables that users write: every format gives the same rows, and a fault costs one row or is an error that names it."""

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server

from sttm import tables
from sttm.tables import EXTENSIONS, BadRow, TableError, read_table, text, texts, whole

ROWS = [{"video": "a.mp4", "question": "What?"}, {"video": "b.mp4", "question": 'Why, "then"?'}]


def encoded(rows: list[dict[str, Any]], extension: str) -> bytes:
    if extension == ".parquet":
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out)
        return out.getvalue()
    if extension == ".csv":
        quoted = [['"' + str(cell).replace('"', '""') + '"' for cell in row.values()] for row in rows]
        return b"\xef\xbb\xbf" + "\r\n".join([",".join(rows[0]), *map(",".join, quoted)]).encode()
    lines = [json.dumps(row) for row in rows]
    return (f"[{','.join(lines)}]" if extension == ".json" else "\n".join(lines)).encode()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_gives_the_same_rows_from_every_filesystem(
    tmp_path: Path, s3_server: S3Server, extension: str
) -> None:
    data, remote = encoded(ROWS, extension), f"{s3_server.new_root()}/q{extension}"
    (tmp_path / f"q{extension}").write_bytes(data)
    fsspec.filesystem("memory").pipe(f"/tables/q{extension}", data)
    fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True).pipe(remote, data)
    for url in (f"{tmp_path}/q{extension}", f"memory://tables/q{extension}", remote):
        table = read_table(url)
        assert (table.url, table.columns, table.rows) == (url, ("video", "question"), list(enumerate(ROWS, 1)))


def test_a_line_that_cannot_be_parsed_costs_no_other_and_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a"\n["b"]\n"c"\n\xff\n' + b"[" * 100_000 + b'\n{"a": 2}\n\n')
    table = read_table(str(path))
    assert table.rows == [(1, {"a": 1}), (8, {"a": 2})]
    assert [row.number for row in table.bad_rows] == [3, 4, 5, 6, 7]
    assert table.bad_rows[1].cause == "a row is a JSON object with named values, this is a list"
    (tmp_path / "q.csv").write_text("a,b\n1,2\n1,2,3\n4\n")
    table = read_table(f"{tmp_path}/q.csv")
    assert table.bad_rows == [BadRow(2, "the line has more cells than the header")]
    assert [number for number, _ in table.rows] == [1, 3]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_cell_that_is_too_long_or_never_closed_costs_one_row(tmp_path: Path, end: str) -> None:
    huge = "x" * 200_000
    cells = {
        "plain": (f"{huge},2", "a cell has 200000 characters, more than the 131072 that are allowed"),
        "quoted, over many lines": (f'"{huge}{end}1,2{end}y",2', "a cell has 2000"),
        "never closed": ('"x,2', "a quote is opened and never closed"),
        "never closed in the last cell": ('x,"2', "a quote is opened and never closed"),
        "not UTF-8": ("\udce9,2", "the line is not UTF-8; save the table as UTF-8"),
    }
    for cell, cause in cells.values():
        lines = ["a,b", "0,1", cell, '"3 ""q"", x",4', "", f"é,{'y' * 100_000}", "5,6"]
        (tmp_path / "q.csv").write_bytes(end.join(lines).encode("utf-8", "surrogateescape"))
        table = read_table(f"{tmp_path}/q.csv")
        assert [(row.number, row.cause[: len(cause)]) for row in table.bad_rows] == [(2, cause)]
        assert [row["a"] for _, row in table.rows] == ["0", '3 "q", x', "é", "5"]


def test_a_last_line_that_is_cut_off_in_a_quote_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('a,b\n1,"2\n3"\n4,"5')
    table = read_table(f"{tmp_path}/q.csv")
    assert table.rows == [(1, {"a": "1", "b": "2\n3"})]
    assert table.bad_rows == [BadRow(2, "a quote is opened and never closed")]


def test_a_csv_of_open_quotes_alone_ends_soon(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("a,b\n" + '"x\n' * 100_001)
    assert len(read_table(f"{tmp_path}/q.csv").bad_rows) == 100_001


def test_a_parquet_cell_that_is_no_text_costs_one_row(tmp_path: Path) -> None:
    texts_ = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xffb")]
    )
    pq.write_table(pa.table({"a": texts_}), tmp_path / "q.parquet")
    table = read_table(f"{tmp_path}/q.parquet")
    assert table.rows == [(2, {"a": "b"})]
    assert (table.bad_rows[0].number, "utf-8" in table.bad_rows[0].cause) == (1, True)


def test_only_the_wanted_columns_of_a_parquet_file_are_read_but_all_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "huge": [b"x" * 1000], "b": [2]}), tmp_path / "q.parquet")
    table = read_table(f"{tmp_path}/q.parquet", only=("a", "b", "c"))
    assert (table.columns, table.rows) == (("a", "huge", "b"), [(1, {"a": 1, "b": 2})])
    with pytest.raises(TableError, match=r"q\.parquet has no column 'c'; columns found: a, huge, b$"):
        table.require("a", "c")


def test_a_table_that_is_too_large_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": ["x" * 20_000]}), tmp_path / "q.parquet", compression="zstd")
    monkeypatch.setattr(tables, "_MAX_BYTES", 10_000)
    assert (tmp_path / "q.parquet").stat().st_size < 10_000
    with pytest.raises(TableError, match=r"1 rows of 20\d+ bytes, .*split it"):
        read_table(f"{tmp_path}/q.parquet")
    (tmp_path / "q.jsonl").write_text("x" * 10_001)
    with pytest.raises(TableError, match=r"q\.jsonl has 10001 bytes, more than the 10000 that are allowed; split it"):
        read_table(f"{tmp_path}/q.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("q.xlsx", b"x", r"unknown format '\.xlsx'; known: \.parquet, \.csv, \.json, \.jsonl, \.ndjson"),
        ("q.json", b'{"a": 1}', r"it holds a dict, not a list of rows"),
        ("q.json", b"{", r"cannot be parsed as \.json"),
        ("q.parquet", b"PAR1 but not really", r"cannot be parsed as \.parquet"),
        ("q.csv", "a\né".encode("latin-1"), r"save it as UTF-8"),
        ("q.csv", None, r"cannot read .*q\.csv: No such file or directory; check the path"),
    ],
)
def test_a_file_that_is_no_table_is_named_with_the_cause(
    tmp_path: Path, name: str, data: bytes | None, says: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TableError, match=says) as found:
        read_table(f"{tmp_path}/{name}")
    assert f"{tmp_path}/{name}" in str(found.value)


def test_cells_are_read_by_their_type_or_the_cell_is_named() -> None:
    row = {"a": 7, "b": "", "list": ["x", 1], "json": '["x"]', "bad": {"x": 1}, "n": "3", "f": 1.5, "huge": 10**400}
    assert (text(row, "b", "a"), texts(row, "list"), texts(row, "json"), texts(row, "b")) == (
        "7",
        ("x", "1"),
        ("x",),
        (),
    )
    assert whole(row, "n") == 3
    for read, name, says in [
        (text, "b", "no b"),
        (text, "bad", "bad is a dict, not text"),
        (texts, "bad", "bad is not a list of texts"),
        (whole, "f", "f is 1.5, not a whole number"),
        (whole, "json", "not a whole number"),
        (whole, "huge", "not a whole number"),
        (whole, "none", "no none"),
    ]:
        with pytest.raises(ValueError, match=says):
            read(row, name)  # type: ignore[operator]


def test_the_query_of_a_web_address_is_neither_its_ending_nor_shown() -> None:
    with pytest.raises(TableError) as found:
        read_table("https://127.0.0.1:1/q.csv?token=hunter2")
    assert str(found.value).startswith("cannot read https://127.0.0.1:1/q.csv: ")
    with pytest.raises(TableError, match=r"q\.md: unknown format '\.md'") as found:
        read_table("https://127.0.0.1:1/q.md?token=hunter2")
    assert "hunter2" not in str(found.value)


def test_a_table_without_rows_has_the_columns_of_its_header(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("video,question\n")
    (tmp_path / "q.jsonl").write_text("")
    assert (read_table(f"{tmp_path}/q.csv").columns, read_table(f"{tmp_path}/q.jsonl").columns) == (
        ("video", "question"),
        None,
    )
    read_table(f"{tmp_path}/q.jsonl").require("video")
