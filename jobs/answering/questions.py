"""The questions of a batch job: a table on any fsspec URL with columns video, question and, optionally, id and options.

The table is not trusted: a row that cannot be asked becomes a `Question` with a `fault` and costs no other row.
"""

from dataclasses import dataclass, replace

from sttm.query.question import fault
from sttm.tables import Row, read_table, text, texts

REQUIRED = ("video", "question")
COLUMNS = (*REQUIRED, "id", "options")


@dataclass(frozen=True)
class Question:
    """One row of the table.

    Attributes:
        id: the row's own id, or its number from 1 on where the table gives none.
        video: id, URI or file name of a stored video.
        text: the question.
        options: the answers to choose from; empty where the answer is generated.
        fault: why the question cannot be asked; empty where it can.
    """

    id: str
    video: str
    text: str
    options: tuple[str, ...] = ()
    fault: str = ""


def read_questions(url: str, limit: int | None = None) -> list[Question]:
    """Read the questions of a Parquet, CSV, JSON or JSON lines file, in order.

    Args:
        url: local path or fsspec URL of the table.
        limit: how many rows to take from the top; None takes all.

    Raises:
        CorpusError: no fsspec filesystem serves the URL.
        TableError: the file cannot be read, is no table, or lacks a column.
    """
    table = read_table(url, COLUMNS)
    table.require(*REQUIRED)
    bad = [(row.number, Question(str(row.number), "", "", fault=row.cause)) for row in table.bad_rows]
    good = [(number, _question(number, row)) for number, row in table.rows]
    return [question for _, question in sorted([*bad, *good], key=lambda pair: pair[0])][:limit]


def _question(number: int, row: Row) -> Question:
    """The question of one row. What was read before a faulty cell is kept, so that the error row shows it."""
    found = Question(str(number), "", "")
    try:
        if row.get("id") not in (None, ""):
            found = replace(found, id=text(row, "id"))
        found = replace(found, video=text(row, "video"))
        found = replace(found, text=text(row, "question"), options=texts(row, "options"))
        return replace(found, fault=fault(found.text, found.options))
    except ValueError as error:
        return replace(found, fault=str(error))
