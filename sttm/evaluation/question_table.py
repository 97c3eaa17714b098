"""A table of questions of one's own, in Parquet, CSV, JSON or JSON lines.

    video      path or URL of a video; a relative one counts from the folder of the videos
    question   what to ask
    answer     the right answer: its text, or the letter of the right option
    options    optional: a list of texts (in CSV as JSON)
    task       optional: a word for the kind of question

The table is not trusted: a row that cannot be used becomes an error that names the row and costs no other row.
"""

import difflib
from pathlib import Path
from typing import cast, get_args

from sttm.errors import ConfigError
from sttm.evaluation.letters import lettered, place_of
from sttm.evaluation.questions import Benchmark, Question, RowError, Scoring, group_by_video
from sttm.evaluation.videos import VideoFolder
from sttm.tables import Row, Table, TableError, read_table, text, texts
from sttm.video.decode import VideoConfig

INSTRUCTION = "Answer with the option's letter from the given choices directly."
REQUIRED, OPTIONAL = ("video", "question", "answer"), ("options", "task")


def read_question_table(path: Path, videos: str | None, config: VideoConfig, scoring: str = "letter") -> Benchmark:
    """Read all questions of a table.

    Args:
        path: the file.
        videos: folder or URL of the videos; None is the table's own folder.
        config: how videos are sampled.
        scoring: how replies to questions with options are judged, see `Question`. Without options it is `exact`.

    Raises:
        ConfigError: there is no such scoring.
        TableError: the table cannot be read, lacks a column, or holds no usable question.
    """
    if scoring not in get_args(Scoring):
        raise ConfigError(f"unknown scoring {scoring!r}; known: {', '.join(get_args(Scoring))}")
    folder = VideoFolder(videos or str(path.resolve().parent), config)
    table = read_table(str(path))
    table.require(*REQUIRED)
    errors = [RowError(bad.number, "", bad.cause) for bad in table.bad_rows]
    asked = []
    for number, row in table.rows:
        try:
            asked.append((folder.resolve(text(row, "video")), _question(row, number, scoring)))
        except ValueError as error:
            errors.append(RowError(number, str(row.get("video") or "")[:200], str(error)))
    if not asked:
        cause = f"; first error: {errors[0]}" if errors else ""
        raise TableError(f"{path} holds no usable question (columns video, question, answer are needed){cause}")
    errors.sort(key=lambda error: error.row)
    return Benchmark(path.stem, group_by_video(asked, folder.read), errors, _notes(table))


def _notes(table: Table) -> tuple[str, ...]:
    """A line that names the columns that are not read, which may be misspelt ones."""
    known = (*REQUIRED, *OPTIONAL)
    unknown = [name for name in table.columns or () if name not in known]
    if not unknown:
        return ()
    near = [(name, match) for name in unknown for match in difflib.get_close_matches(name, OPTIONAL, n=1, cutoff=0.7)]
    hint = "".join(
        f"; did you mean {match!r} by {name!r}?" for name, match in near if match not in (table.columns or ())
    )
    return (f"{table.url}: columns {', '.join(unknown)[:500]} are not read; known: {', '.join(known)}{hint}",)


def _question(row: Row, number: int, scoring: str) -> Question:
    prompt, answer, options = text(row, "question"), text(row, "answer"), texts(row, "options")
    task = str(row.get("task") or "all")
    if not options:
        return Question(prompt, answer, task=task, row=number)
    right = options.index(answer) if answer in options else place_of(answer)
    if right >= len(options):
        raise ValueError(f"answer {answer!r} is beyond the {len(options)} options")
    kind = cast(Scoring, scoring)
    if kind == "letter":
        prompt = "\n".join((prompt, *lettered(options), INSTRUCTION))
    return Question(prompt, options[right], options, right, task, scoring=kind, row=number)
