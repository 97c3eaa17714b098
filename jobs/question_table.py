"""The questions of a batch job: a table on any fsspec URL with columns video, question, and if you like id, options.

The table is not trusted: a row that cannot be asked becomes an error that names it and costs no other.
"""

import posixpath
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sttm.errors import CorpusError
from sttm.evaluation.cells import text, texts
from sttm.evaluation.rows import read_rows
from sttm.video_file import open_filesystem, redact_url

MAX_CHARS, MAX_OPTIONS = 32_000, 64


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
        QuestionsError: it is not a table.
    """
    filesystem, path = open_filesystem(url)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "questions" + posixpath.splitext(path)[1].lower())
        try:
            filesystem.get_file(path, str(copy))
        except OSError as error:
            raise CorpusError(f"cannot read {redact_url(url)}: {error.strerror or type(error).__name__}") from None
        rows, errors = read_rows(copy)
    bad = [(error.row, AskedRow(str(error.row), "", "", error=error.cause)) for error in errors]
    found = [(number, _asked(number, row)) for number, row in rows]
    return [row for _, row in sorted([*bad, *found], key=lambda pair: pair[0])][:limit]


def _asked(number: int, row: dict[str, object]) -> AskedRow:
    found = AskedRow(str(number), "", "")
    try:
        if row.get("id") not in (None, ""):
            found = replace(found, id=text(row, "id"))
        found = replace(found, video=text(row, "video"))
        found = replace(found, question=text(row, "question"), options=texts(row, "options"))
        return replace(found, error=_fault(found.question, found.options))
    except ValueError as error:
        return replace(found, error=str(error))


def _fault(question: str, options: Sequence[str]) -> str:
    if not question.strip():
        return "the question is empty"
    if len(question) > MAX_CHARS:
        return f"the question has {len(question)} characters, over {MAX_CHARS}"
    if options and not 2 <= len(options) <= MAX_OPTIONS:
        return f"{len(options)} options; give 2 to {MAX_OPTIONS}, or none"
    if any(not option or len(option) > MAX_CHARS for option in options):
        return f"an option is empty or has over {MAX_CHARS} characters"
    return ""
