"""A table of questions of one's own: columns video, question, answer, optionally options and task.

The table is not trusted: a row that cannot be used becomes an error that names it and costs no other.
"""

from pathlib import Path
from typing import cast, get_args

from sttm.evaluation import cells
from sttm.evaluation.questions import Benchmark, Question, QuestionsError, RowError, Scoring, group_by_video
from sttm.evaluation.rows import read_rows
from sttm.evaluation.videos import VideoFolder
from sttm.video.decode import VideoConfig

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def read_table(path: Path, videos: str | None, config: VideoConfig, scoring: str = "auto") -> Benchmark:
    """All questions of a table.

    Args:
        path: Parquet, JSON lines, JSON list or CSV. `video` is a path or URL, relative ones counted from `videos`;
            `options` a list of texts; `answer` the text of the right option or its letter; `task` any word.
        videos: folder or URL of the videos; None is the table's own folder.
        config: how videos are sampled.
        scoring: of questions with options; `auto` is `letter`. Without options it is always `exact`.

    Raises:
        QuestionsError: the table cannot be read, or no row of it is a question.
    """
    if scoring not in ("auto", *get_args(Scoring)):
        raise QuestionsError(f"unknown scoring {scoring!r}; known: auto, {', '.join(get_args(Scoring))}")
    folder = VideoFolder(videos or str(path.resolve().parent), config)
    rows, errors = read_rows(path)
    asked = []
    for number, row in rows:
        try:
            asked.append((folder.resolve(cells.text(row, "video")), _question(row, number, scoring)))
        except ValueError as error:
            errors.append(RowError(number, str(row.get("video") or "")[:200], str(error)))
    if not asked:
        cause = f"; first error: {errors[0]}" if errors else ""
        raise QuestionsError(f"{path} holds no usable question (columns video, question, answer are needed){cause}")
    return Benchmark(path.stem, group_by_video(asked, folder.read), sorted(errors, key=lambda e: e.row))


def _question(row: cells.Row, number: int, scoring: str) -> Question:
    prompt, answer, options = cells.text(row, "question"), cells.text(row, "answer"), cells.texts(row, "options")
    task = str(row.get("task") or "all")
    if not options:
        return Question(prompt, answer, task=task, row=number)
    right = options.index(answer) if answer in options else cells.place_of(answer)
    if right >= len(options):
        raise ValueError(f"answer {answer!r} is beyond the {len(options)} options")
    kind = cast(Scoring, "letter" if scoring == "auto" else scoring)
    if kind == "letter":
        prompt = "\n".join((prompt, *cells.lettered(options), INSTRUCTION))
    return Question(prompt, options[right], options, right, task, scoring=kind, row=number)
