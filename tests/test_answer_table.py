"""The table of answers: parts are joined by key, old parts are read, and every format of the final table holds all."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.answering.answer_table import SCHEMA, AnswerRow, AnswerTable, FileFormat
from sttm.tables import read_table

OPTIONS = ["red", "blue", "green"]
ROWS = [
    AnswerRow("k1", "1", "v", "Which?", OPTIONS, answer="red", choice=0, probabilities=[0.5, 0.3, 0.2], load_s=0.25),
    AnswerRow("k2", "2", "v", 'Why,\n"so"?', answer="é\ud800"),
    AnswerRow("k3", "3", "\udcff.mp4", "?", status="error", error_code="no_video", error_message="no video"),
]


@pytest.mark.parametrize("file_format", FileFormat)
def test_every_format_holds_every_cell_of_every_row_in_order(tmp_path: Path, file_format: FileFormat) -> None:
    url = AnswerTable(str(tmp_path)).finish(ROWS, file_format)
    assert url == f"{tmp_path}/answers.{file_format}"
    rows = [row for _, row in read_table(url).rows]
    assert list(rows[0]) == SCHEMA.names
    assert [row["answer"] for row in rows] == ["red", r"é\ud800", ""]
    assert [row["video"] for row in rows] == ["v", "v", r"\udcff.mp4"]
    assert rows[1]["question"] == 'Why,\n"so"?'
    if file_format == FileFormat.CSV:
        assert (rows[0]["options"], rows[0]["choice"], rows[1]["choice"]) == (json.dumps(OPTIONS), "0", "")
        assert json.loads(rows[0]["probabilities"]) == [0.5, 0.3, 0.2]
        assert next(csv.reader(io.StringIO(Path(url).read_text()))) == SCHEMA.names
    else:
        assert (rows[0]["options"], rows[0]["choice"], rows[1]["choice"]) == (OPTIONS, 0, None)
        assert (rows[0]["probabilities"], rows[0]["load_s"]) == ([0.5, 0.3, 0.2], 0.25)


def test_parts_whose_answers_are_in_a_column_named_text_are_read(tmp_path: Path) -> None:
    """Programs up to commit 1bdc22c wrote that name."""
    table = AnswerTable(str(tmp_path))
    table.add("new-0", ROWS[:1])
    part = pq.read_table(tmp_path / "parts" / "new-0.parquet")
    old = part.rename_columns(["text" if name == "answer" else name for name in part.column_names])
    pq.write_table(old.set_column(0, "key", pa.array(["old"])), tmp_path / "parts" / "old-0.parquet")
    assert {key: row.answer for key, row in table.rows().items()} == {"k1": "red", "old": "red"}
