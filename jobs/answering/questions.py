"""The questions of a batch job: a table on any fsspec URL with columns video, question, and if you like id, options.

The table is not trusted: a row that cannot be asked becomes an error that names it and costs no other.
"""

from dataclasses import dataclass, replace

from sttm.query.question import fault
from sttm.tables import Row, read_table, text, texts

REQUIRED = ("video", "question")
COLUMNS = (*REQUIRED, "id", "options")


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
        CorpusError: no fsspec filesystem serves the URL.
        TableError: the file cannot be read, is no table, or lacks a column.
    """
    table = read_table(url, COLUMNS)
    table.require(*REQUIRED)
    bad = [(row.number, AskedRow(str(row.number), "", "", error=row.cause)) for row in table.bad_rows]
    good = [(number, _asked(number, row)) for number, row in table.rows]
    return [row for _, row in sorted([*bad, *good], key=lambda pair: pair[0])][:limit]


def _asked(number: int, row: Row) -> AskedRow:
    found = AskedRow(str(number), "", "")
    try:
        if row.get("id") not in (None, ""):
            found = replace(found, id=text(row, "id"))
        found = replace(found, video=text(row, "video"))
        found = replace(found, question=text(row, "question"), options=texts(row, "options"))
        return replace(found, error=fault(found.question, found.options))
    except ValueError as error:
        return replace(found, error=str(error))
