"""A table of questions of one's own: columns video, question, answer, optionally options and task.

The table is not trusted: a row that cannot be used becomes an error that names it and costs no other.
"""

from pathlib import Path
from typing import cast, get_args

from sttm.errors import ConfigError
from sttm.evaluation.letters import lettered, place_of
from sttm.evaluation.questions import Benchmark, Question, RowError, Scoring, group_by_video
from sttm.evaluation.videos import VideoFolder
from sttm.tables import Row, TableError, read_table, text, texts
from sttm.video.decode import VideoConfig

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def read_question_table(path: Path, videos: str | None, config: VideoConfig, scoring: str = "auto") -> Benchmark:
    """All questions of a table.

    Args:
        path: Parquet, JSON lines, JSON list or CSV. `video` is a path or URL, relative ones counted from `videos`;
            `options` a list of texts; `answer` the text of the right option or its letter; `task` any word.
        videos: folder or URL of the videos; None is the table's own folder.
        config: how videos are sampled.
        scoring: of questions with options; `auto` is `letter`. Without options it is always `exact`.

    Raises:
        TableError: the table cannot be read, or no row of it is a question.
    """
    if scoring not in ("auto", *get_args(Scoring)):
        raise ConfigError(f"unknown scoring {scoring!r}; known: auto, {', '.join(get_args(Scoring))}")
    folder = VideoFolder(videos or str(path.resolve().parent), config)
    table = read_table(str(path))
    table.require("video", "question", "answer")
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
    return Benchmark(path.stem, group_by_video(asked, folder.read), sorted(errors, key=lambda e: e.row))


def _question(row: Row, number: int, scoring: str) -> Question:
    prompt, answer, options = text(row, "question"), text(row, "answer"), texts(row, "options")
    task = str(row.get("task") or "all")
    if not options:
        return Question(prompt, answer, task=task, row=number)
    right = options.index(answer) if answer in options else place_of(answer)
    if right >= len(options):
        raise ValueError(f"answer {answer!r} is beyond the {len(options)} options")
    kind = cast(Scoring, "letter" if scoring == "auto" else scoring)
    if kind == "letter":
        prompt = "\n".join((prompt, *lettered(options), INSTRUCTION))
    return Question(prompt, options[right], options, right, task, scoring=kind, row=number)
