"""Measure how much accuracy reducers keep: a model, questions with known answers, and a list of reducers at budgets.

    python -m jobs.evaluate --quick
    python -m jobs.evaluate --reducers "sttm,sttm[variant=reference],tome" --budgets 0.5,0.3
    python -m jobs.evaluate --config my.yaml --questions questions.csv --videos clips/ --out results/
    python -m jobs.evaluate --config my.yaml --benchmark video-mme --annotations test.parquet --videos data/

What is asked is one of three things: the built-in synthetic clips (the default), a table of your own (--questions), or
a public benchmark from its own annotation file (--benchmark with --annotations and --videos).

A table of questions is a Parquet, CSV, JSON or JSON lines file. Columns:

    video      path or URL of a video; relative ones count from --videos, by default the folder of the table
    question   what to ask
    answer     the right answer: its text, or the letter of the right option (A is the first one)
    options    optional: a list of answers to choose from (in CSV as JSON)
    task       optional: a word for the kind of question; accuracy is also given for each task

With options, --scoring letter (the default) lets the model reply and reads the letter from the reply, `exact` compares
the reply's text with the answer, `likelihood` asks which option the model finds likeliest. Without options the scoring
is `exact`. A reply from which no single letter can be read is wrong; the report says how many replies could be read.

Every video is read and vision-encoded once for all reducers and questions. Full tokens are always the first row; all
others are compared with it, question by question. A setting in brackets changes that reducer only, see
`sttm/evaluation/reducers.py`; --set changes all of them. A reply has at most 16 tokens, unless the settings say
`sampling.max_tokens`. A question that cannot be asked becomes an error row and counts for no reducer.

The last line printed is JSON. OUT gets report.json, table.md, answers.jsonl (one line a question: its right answer, and
the answer under each reducer) and, with matplotlib (`pip install 'sttm[eval]'`), plot.png. Exit codes: 0 done, 1 cannot
run, 3 more than half of the videos failed.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from jobs.command import EXIT_TOO_MANY_FAILED, ConfigOption, SetOption, run
from jobs.config import JobConfig
from sttm.config import IndexConfig, load_config
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ConfigError, SttmError
from sttm.evaluation.benchmarks import FORMATS, read_benchmark
from sttm.evaluation.evaluator import REPLY_TOKENS, Evaluator, VideoOutcome
from sttm.evaluation.markdown import tables
from sttm.evaluation.question_table import read_question_table
from sttm.evaluation.questions import Benchmark, VideoQuestions
from sttm.evaluation.record import Record, write_results
from sttm.evaluation.reducers import parse_reducers
from sttm.evaluation.summary import summarise, unreadable
from sttm.evaluation.synthetic import CLIPS, QUICK_CLIPS, synthetic_benchmark
from sttm.models.checkpoint import Checkpoint
from sttm.models.video_inputs import VideoInputs

MAX_FAILED_SHARE = 0.5
ERRORS_SHOWN = 20
READ_AHEAD = 4  # videos read by threads while the GPU works
_BUILT_IN = "synthetic"


def evaluate(
    config: ConfigOption = "tiny",
    benchmark: Annotated[
        str | None, typer.Option(help=f"{_BUILT_IN} (the default), {', '.join(FORMATS)}; not with --questions")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="table of questions with the columns video, question, answer[, options, task]")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="annotation file of the public benchmark; for mlvu also the folder of its files")
    ] = None,
    videos: Annotated[
        str | None, typer.Option(help="folder or URL of the videos; default the folder of the table of questions")
    ] = None,
    reducers: Annotated[str, typer.Option(help="comma-separated, each with [setting=value,...]")] = "sttm,tome",
    budgets: Annotated[str, typer.Option(help="shares of the tokens to keep, comma-separated")] = "0.5,0.3",
    scoring: Annotated[
        str | None, typer.Option(help="for questions with options: letter (the default), exact or likelihood")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_CLIPS} videos: minutes on two CPU cores")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many videos")] = None,
    encoded: Annotated[bool, typer.Option("--encoded", help="send synthetic clips through H.264 files")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default a GPU if there is one")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for report, table, answers and plot")] = None,
    set_: SetOption = None,
) -> int:
    """Measure how much accuracy reducers keep."""
    settings = load_config(JobConfig, config, set_)
    compared = parse_reducers(reducers, parse_budgets(budgets), settings)
    source = Source(benchmark, questions, annotations, videos, scoring, encoded)
    source.require_consistent()
    if quick and limit:
        raise ConfigError(f"--quick and --limit {limit} both say how many videos are asked about; give one of them")
    device = _usable(device) if device else ("cuda" if torch.cuda.is_available() else "cpu")
    if out is not None:
        _make(out)
    limit = limit or (QUICK_CLIPS if quick else None)
    asked = source.load(settings, limit).head(limit)
    for note in asked.notes:
        print(note, file=sys.stderr, flush=True)
    checkpoint = Checkpoint.open(settings.model)
    record = Record(compared, len(asked.videos), errors=list(asked.errors))
    evaluator = Evaluator(checkpoint, compared, reply_sampling(settings), device)
    for video, inputs in _read(evaluator, asked.videos, ahead=READ_AHEAD if device != "cpu" else 0):
        record.add(video, inputs if isinstance(inputs, str) else _run(evaluator, video, inputs))
    rows = summarise(compared, record.outcomes)
    shown = {**settings.index.model_dump(mode="json"), "sampling": settings.sampling.model_dump(mode="json")}
    report = record.report(asked.name, checkpoint, device, shown, rows)
    print(tables(rows) if rows else "no question could be asked")
    for warning in unreadable(rows):
        print(f"warning: {warning}", flush=True)
    _show_errors(record)
    if out is not None:
        write_results(out, report, rows, record)
    print(json.dumps(report), flush=True)
    return EXIT_TOO_MANY_FAILED if record.failed > MAX_FAILED_SHARE * len(asked.videos) else 0


def reply_sampling(settings: JobConfig) -> SamplingConfig:
    """The `sampling` section, with short replies unless a settings file or an override says `max_tokens`."""
    if "max_tokens" in settings.sampling.model_fields_set:
        return settings.sampling
    return settings.sampling.model_copy(update={"max_tokens": REPLY_TOKENS})


def _run(evaluator: Evaluator, video: VideoQuestions, inputs: VideoInputs) -> VideoOutcome | str:
    """One video under all reducers, or why it does not fit into memory, which costs no other video."""
    try:
        return evaluator.run(video, inputs)
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return f"out of memory at {inputs.tokens} visual tokens: {str(error).splitlines()[0]}"


def _usable(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigError(f"--device {device!r}: {cause}; write cpu, cuda or cuda:1, or leave it out") from error
    return device


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be a folder: {error.strerror}; name another") from error


def parse_budgets(text: str) -> list[float]:
    """Read shares from a comma-separated list: `0.5,0.3` becomes [0.5, 0.3].

    Raises:
        ConfigError: a part is not a number above 0 and at most 1.
    """
    try:
        budgets = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--budgets {text!r}: {error}; write shares like 0.5,0.3") from error
    if not all(0 < budget <= 1 for budget in budgets):
        raise ConfigError(f"--budgets {text!r}: a budget is a share of the tokens kept, above 0 and at most 1")
    return budgets


@dataclass(frozen=True)
class Source:
    """Where the questions come from: the options of the command line that say so."""

    benchmark: str | None
    questions: Path | None
    annotations: Path | None
    videos: str | None
    scoring: str | None
    encoded: bool

    def require_consistent(self) -> None:
        """Check that every option given belongs to the kind of questions that is asked.

        Raises:
            ConfigError: an option is missing, or does not go with the others; the message names both.
        """
        known = f"{_BUILT_IN}, {', '.join(FORMATS)}"
        if self.benchmark not in (None, _BUILT_IN, *FORMATS):
            raise ConfigError(f"no benchmark {self.benchmark!r}; known: {known}")
        is_public = self.benchmark in FORMATS
        if self.questions is not None and self.benchmark is not None:
            raise ConfigError(f"--questions {self.questions} and --benchmark {self.benchmark}: give one of the two")
        if self.annotations is not None and not is_public:
            raise ConfigError(
                f"--annotations {self.annotations} needs the name of its public benchmark: --benchmark with one of "
                f"{', '.join(FORMATS)}; a table of your own is --questions"
            )
        if is_public and (self.annotations is None or self.videos is None):
            raise ConfigError(f"--benchmark {self.benchmark} needs --annotations FILE and --videos FOLDER")
        if self.videos is not None and self.questions is None and not is_public:
            raise ConfigError(f"--videos {self.videos} needs --questions, or a public --benchmark with --annotations")
        if self.scoring is not None and self.questions is None:
            raise ConfigError(f"--scoring {self.scoring} needs --questions: a benchmark has a scoring of its own")
        if self.encoded and (self.questions is not None or is_public):
            raise ConfigError("--encoded is for the built-in clips; it goes with neither --questions nor --annotations")

    def load(self, settings: IndexConfig, limit: int | None) -> Benchmark:
        """All questions, grouped by video.

        Raises:
            ConfigError: the scoring is unknown.
            TableError: the file cannot be read, or holds no question.
        """
        if self.questions is not None:
            return read_question_table(self.questions, self.videos, settings.video, self.scoring or "letter")
        if self.annotations is not None and self.videos is not None and self.benchmark is not None:
            return read_benchmark(self.benchmark, self.annotations, self.videos, settings.video)
        return synthetic_benchmark(limit or CLIPS, settings.video if self.encoded else None)


def _read(
    evaluator: Evaluator, videos: list[VideoQuestions], ahead: int
) -> Iterator[tuple[VideoQuestions, VideoInputs | str]]:
    """Each video with its inputs, or with the reason why there are none; threads read `ahead` videos in advance."""

    def inputs(video: VideoQuestions) -> VideoInputs | str:
        try:
            return evaluator.preprocess(video)
        except (SttmError, OSError, ValueError) as error:
            return str(error)

    if not ahead:
        yield from ((video, inputs(video)) for video in videos)
        return
    with ThreadPoolExecutor(ahead) as pool:
        waiting: list[tuple[VideoQuestions, Future[VideoInputs | str]]] = []
        for video in videos:
            waiting.append((video, pool.submit(inputs, video)))
            if len(waiting) > ahead:
                done, future = waiting.pop(0)
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _show_errors(record: Record) -> None:
    for error in record.errors[:ERRORS_SHOWN]:
        print(f"not asked: {error}")
    if len(record.errors) > ERRORS_SHOWN:
        print(f"not asked: {len(record.errors) - ERRORS_SHOWN} more (--out keeps them all)")


def command() -> None:
    """Entry point."""
    run(__doc__, evaluate=evaluate)


if __name__ == "__main__":
    command()
