"""A table of questions that cannot be used says which file, and what is wrong with it."""

from pathlib import Path

import pytest

from jobs.answering.questions import read_questions
from sttm.tables import TableError


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.csv", "vid,question\na.mp4,What?\n", "has no column 'video'; columns found: vid, question$"),
        ("q.jsonl", '{"video": "a", "prompt": "?"}\n{"id": 2}\n', "no column 'question'; .*: video, prompt, id$"),
        ("q.md", "| video | question |", "unknown format '.md'"),
        ("q.json", "{", "cannot be parsed as .json"),
    ],
)
def test_the_file_and_its_fault_are_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TableError, match=says) as found:
        read_questions(str(tmp_path / name))
    assert str(found.value).startswith(str(tmp_path / name))


def test_a_row_that_lacks_a_value_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        '{"video": "a", "question": "?"}\n{"video": "b"}\n{"video": "c", "question": "\\ud800"}'
    )
    causes = [row.fault for row in read_questions(str(tmp_path / "q.jsonl"))]
    assert causes == ["", "no question", r"'\ud800' is not valid Unicode; write it in UTF-8"]
