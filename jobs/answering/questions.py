"""The questions of a batch job: a table on any fsspec URL with columns video, question, and if you like id, options.

The table is not trusted: a row that cannot be asked becomes an error that names it and costs no other.
"""

import posixpath
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from sttm.errors import CorpusError
from sttm.evaluation.cells import text, texts
from sttm.evaluation.questions import QuestionsError
from sttm.evaluation.rows import read_rows
from sttm.query.question import fault
from sttm.urls import open_filesystem, redact_url

REQUIRED = ("video", "question")


@dataclass(frozen=True)
class AskedRow:
    """One row of the table.

    Attributes:
        id: the row's own, else its number from 1 on.
        video: id, URI or name of a stored video.
        question: what to ask.
        options: what to choose from; none for a free answer.
        error: why it cannot be asked; empty if it can.
    """

    id: str
    video: str
    question: str
    options: tuple[str, ...] = ()
    error: str = ""


def read_questions(url: str, limit: int | None = None) -> list[AskedRow]:
    """All rows of a Parquet, CSV, JSON lines or JSON file, in order.

    Raises:
        CorpusError: the file is not there or cannot be read.
        QuestionsError: it is not a table, or lacks a column.
    """
    filesystem, path = open_filesystem(url)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "questions" + posixpath.splitext(path)[1].lower())
        try:
            filesystem.get_file(path, str(copy))
        except OSError as error:
            raise CorpusError(f"cannot read {redact_url(url)}: {error.strerror or type(error).__name__}") from None
        try:
            rows, errors = read_rows(copy)
        except QuestionsError as error:
            raise QuestionsError(str(error).replace(str(copy), redact_url(url))) from None
    columns = dict.fromkeys(str(name) for _, row in rows for name in row)
    for name in REQUIRED:
        if rows and name not in columns:
            found = ", ".join(columns)[:500] or "none"
            raise QuestionsError(f"{redact_url(url)} has no column {name!r}; columns found: {found}")
    bad = [(error.row, AskedRow(str(error.row), "", "", error=error.cause)) for error in errors]
    good = [(number, _asked(number, row)) for number, row in rows]
    return [row for _, row in sorted([*bad, *good], key=lambda pair: pair[0])][:limit]


def _asked(number: int, row: dict[str, object]) -> AskedRow:
    found = AskedRow(str(number), "", "")
    try:
        if row.get("id") not in (None, ""):
            found = replace(found, id=text(row, "id"))
        found = replace(found, video=text(row, "video"))
        found = replace(found, question=text(row, "question"), options=texts(row, "options"))
        return replace(found, error=fault(found.question, found.options))
    except ValueError as error:
        return replace(found, error=str(error))
