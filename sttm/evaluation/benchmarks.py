"""Reads the six public benchmarks of the paper (arXiv 2507.07990) from their own annotation files.

All are asked with one prompt, which the authors' evaluation uses (https://github.com/HYUNJS/STTM,
llava/eval/eval_utils.py) and lmms-eval for Video-MME. A reply that names no option is wrong (lmms-eval guesses at
random for LongVideoBench and NExT-QA).

| name | annotation file | the paper samples |
|---|---|---|
| video-mme | Parquet of lmms-lab/Video-MME, or videomme.json | 1 fps, at most 128 frames; no subtitles |
| longvideobench | lvb_val.json, or Parquet of longvideobench/LongVideoBench | the same; no subtitles |
| mlvu | one task's JSON (1_plotQA.json to 7_topic_reasoning.json), or their folder | the same |
| next-qa | test.csv, or Parquet of lmms-lab/NExTQA (MC) | the same |
| egoschema | questions.json beside subset_answers.json, or Parquet of lmms-lab/egoschema (Subset) | the same |
| vnbench | VNBench-main-4try.json | 1 fps, at most 180 frames |

VNBench asks each question four times, with the options in four orders, and counts it as right if all four replies are
right (https://github.com/joez17/VideoNIAH, evaluation/eval.py). The authors of the paper count single replies, which is
`Row.reply_accuracy` here. MLVU and VNBench report the mean over their tasks, which is `Row.task_mean_accuracy`.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sttm.errors import ConfigError
from sttm.evaluation.letters import lettered, place_of, without_letters
from sttm.evaluation.questions import Benchmark, Question, RowError, group_by_video
from sttm.evaluation.videos import VideoFolder
from sttm.tables import Row, TableError, read_table, text, texts, whole
from sttm.video.decode import VideoConfig

_VNBENCH_TRIES = 4


class Named(NamedTuple):
    """A question, and its video by the name that the annotation file gives."""

    video: str
    question: Question


def read_benchmark(name: str, annotations: Path, videos: str, config: VideoConfig) -> Benchmark:
    """Read all questions of a public benchmark.

    Args:
        name: a key of `FORMATS`.
        annotations: its annotation file, as published; for MLVU also the folder with the files of its tasks.
        videos: folder of its videos.
        config: how videos are sampled.

    Raises:
        ConfigError: there is no such benchmark.
        TableError: the file cannot be read or holds no question of this benchmark.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown benchmark {name!r}; known: synthetic, {', '.join(FORMATS)}")
    files = sorted(annotations.glob("*.json")) if name == "mlvu" and annotations.is_dir() else [annotations]
    folder, asked, errors = VideoFolder(videos, config), [], []
    for path in files:
        named, unusable = _read_file(name, path)
        places = [place.format(task=path.stem) for place in FORMATS[name][1]]
        asked += [(folder.resolve(video, *places), question) for video, question in named]
        errors += [replace(e, cause=f"{path.name}: {e.cause}") if len(files) > 1 else e for e in unusable]
    if not asked:
        cause = f"; first error: {errors[0]}" if errors else ""
        raise TableError(f"{annotations} holds no question of {name}{cause}")
    return Benchmark(name, group_by_video(asked, folder.read), errors)


def _read_file(name: str, path: Path) -> tuple[list[Named], list[RowError]]:
    table = read_table(str(path))
    rows, errors = table.rows, [RowError(bad.number, "", bad.cause) for bad in table.bad_rows]
    if name == "egoschema":
        rows = _with_public_answers(rows, path.parent / "subset_answers.json")
    named = []
    for number, row in rows:
        try:
            named.append(FORMATS[name][0](row, number))
        except ValueError as error:
            video = next((row[key] for key in ("video", "video_path", "videoID", "q_uid") if row.get(key)), "")
            errors.append(RowError(number, str(video)[:200], str(error)))
    if name == "vnbench":
        named, incomplete = _complete_groups(named)
        errors += incomplete
    return named, sorted(errors, key=lambda e: e.row)


def choose(question: str, lines: tuple[str, ...]) -> str:
    """The prompt of the paper for a question.

    Args:
        question: the text of the question.
        lines: the options, each with its letter.
    """
    letters = [chr(ord("A") + i) for i in range(len(lines))]
    named = f"{', '.join(letters[:-1])}{',' if len(letters) > 2 else ''} or {letters[-1]}"
    return (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        f"Respond with only the letter ({named}) of the correct option.\n{question}\n" + "\n".join(lines)
    ) + "\nThe best answer is:"


def _choice(
    row: Row,
    options: tuple[str, ...],
    right: int,
    task: str,
    number: int,
    form: str = "{}. {}",
    group: str | None = None,
) -> Question:
    if len(options) < 2:
        raise ValueError(f"{len(options)} options: not multiple choice")
    if not 0 <= right < len(options):
        raise ValueError(f"the answer is option {right}, the options are 0 to {len(options) - 1}")
    prompt = choose(text(row, "question").strip(), lettered(options, form))
    return Question(prompt, options[right], options, right, task, group, "letter", number)


def _video_mme(row: Row, number: int) -> Named:
    """Columns: videoID, question, options ("A. ..."), answer (letter), duration (short, medium, long)."""
    options = without_letters(texts(row, "options"))
    right = place_of(text(row, "answer"))
    return Named(text(row, "videoID"), _choice(row, options, right, text(row, "duration"), number))


def _longvideobench(row: Row, number: int) -> Named:
    """Columns: video_path, question, candidates (Parquet: option0 to option4, "N/A" if none), correct_choice."""
    columns = (row.get(f"option{i}") for i in range(5))
    options = texts(row, "candidates") or tuple(str(o) for o in columns if o not in (None, "", "N/A"))
    task = str(text(row, "duration_group", "question_category"))
    return Named(text(row, "video_path"), _choice(row, options, whole(row, "correct_choice"), task, number))


def _mlvu(row: Row, number: int) -> Named:
    """Columns: video, question, candidates, answer (text; its first candidate counts), question_type."""
    options, answer = texts(row, "candidates"), text(row, "answer")
    if answer not in options:
        raise ValueError(f"answer {answer[:80]!r} is none of the {len(options)} candidates")
    question = _choice(row, options, options.index(answer), text(row, "question_type"), number)
    return Named(text(row, "video"), question)


def _next_qa(row: Row, number: int) -> Named:
    """Columns: video, question, a0 to a4, answer (index), type."""
    options = tuple(text(row, f"a{i}").strip() for i in range(5))
    question = _choice(row, options, whole(row, "answer"), text(row, "type"), number)
    return Named(text(row, "video"), question)


def _egoschema(row: Row, number: int) -> Named:
    """JSON has q_uid, question, "option 0" to "option 4"; Parquet: video_idx, question, option ("A. ..."), answer."""
    listed = without_letters(texts(row, "option"))
    options = listed or tuple(text(row, f"option {i}") for i in range(5))
    if row.get("answer") in (None, ""):
        raise ValueError("no public answer: only the subset of 500 questions has one")
    question = _choice(row, options, whole(row, "answer"), "all", number)
    return Named(text(row, "video_idx", "q_uid"), question)


def _vnbench(row: Row, number: int) -> Named:
    """Columns: video, question, options, gt_option (letter), type, try.

    Each question has a video of its own, which all its tries share.
    """
    options, video = texts(row, "options"), PurePosixPath(text(row, "video")).name
    right, task = place_of(text(row, "gt_option")), text(row, "type")
    whole(row, "try")
    return Named(video, _choice(row, options, right, task, number, form="{}. {}.", group=video))


def _with_public_answers(rows: list[tuple[int, Row]], path: Path) -> list[tuple[int, Row]]:
    """The rows with their right answers, which EgoSchema publishes for 500 questions in a separate file."""
    if not path.is_file():
        return rows
    try:
        answers = json.loads(path.read_text("utf-8"))
        return [(number, {"answer": answers.get(str(row.get("q_uid"))), **row}) for number, row in rows]
    except (OSError, ValueError, AttributeError) as error:
        raise TableError(f"{path} is not an object from q_uid to answer: {error}") from error


def _complete_groups(named: list[Named]) -> tuple[list[Named], list[RowError]]:
    """The questions that have all their tries, and errors for the others, which cannot be judged."""
    tries = Counter(question.group for _, question in named)
    complete, errors = [], []
    for item in named:
        if (count := tries[item.question.group]) == _VNBENCH_TRIES:
            complete.append(item)
        else:
            cause = f"its question has {count} usable tries instead of {_VNBENCH_TRIES}"
            errors.append(RowError(item.question.row, item.video, cause))
    return complete, errors


FORMATS: dict[str, tuple[Callable[[Row, int], Named], tuple[str, ...]]] = {
    "video-mme": (_video_mme, ("data", "videos")),
    "longvideobench": (_longvideobench, ("videos",)),
    # Each task of MLVU has a folder of videos, and 363 file names occur in more than one of them.
    "mlvu": (_mlvu, ("video/{task}", "{task}", "MLVU/video/{task}")),
    "next-qa": (_next_qa, ("NExTVideo", "videos")),
    "egoschema": (_egoschema, ("videos",)),
    "vnbench": (_vnbench, ("VNBench_new", "VNBench", "videos")),
}
"""By name of the benchmark: the reader of a row, and the folders in which releases keep the videos."""
