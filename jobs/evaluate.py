"""How much accuracy reducers keep: a model, questions with known answers, and a list of reducers at budgets.

    python -m jobs.evaluate --quick
    python -m jobs.evaluate --benchmark synthetic --reducers "sttm,sttm[variant=reference],tome" --budgets 0.5,0.3
    python -m jobs.evaluate --config ... --questions questions.parquet --out results/
    python -m jobs.evaluate --config ... --benchmark video-mme --annotations test.parquet --videos data/

Every video is read and vision-encoded once for all reducers and questions. Full tokens are always the first row; all
others are compared with it, question by question. A setting in brackets changes that reducer only, see
`sttm.evaluation.reducers`; `--set` changes all of them. Questions that cannot be asked become error rows and count for
no reducer. The last line is JSON; `--out` also keeps the table, every reply and the errors. Exit code 3: more than
half of the videos failed.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from jobs.command import EXIT_TOO_MANY_FAILED, run
from jobs.config import JobConfig
from sttm.config import IndexConfig, load_config
from sttm.errors import ConfigError, SttmError
from sttm.evaluation.benchmarks import FORMATS, read_benchmark
from sttm.evaluation.evaluator import Evaluator, VideoOutcome
from sttm.evaluation.markdown import tables
from sttm.evaluation.plot import plot
from sttm.evaluation.questions import Benchmark, RowError, VideoQuestions
from sttm.evaluation.reducers import Reducer, parse_reducers
from sttm.evaluation.summary import Row, summarise
from sttm.evaluation.synthetic import CLIPS, QUICK_CLIPS, synthetic_benchmark
from sttm.evaluation.table import read_table
from sttm.models.base import VideoInputs
from sttm.models.checkpoint import Checkpoint

PROGRESS_EVERY_S = 10.0
MAX_FAILED_SHARE = 0.5
ERRORS_SHOWN = 20
READ_AHEAD = 4  # videos, where a GPU would wait for them


def evaluate(
    config: Annotated[str, typer.Option(help="YAML settings: model, video sampling, merge")] = "configs/tiny.yaml",
    benchmark: Annotated[str, typer.Option(help=f"synthetic, {', '.join(FORMATS)}")] = "synthetic",
    questions: Annotated[Path | None, typer.Option(help="table of questions: Parquet, JSON lines, CSV")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="a public benchmark's own annotation file; of mlvu also their folder")
    ] = None,
    videos: Annotated[str | None, typer.Option(help="folder of the videos; default beside the table")] = None,
    reducers: Annotated[str, typer.Option(help="comma-separated, with [setting=value,...]")] = "sttm,tome",
    budgets: Annotated[str, typer.Option(help="shares of the tokens to keep, comma-separated")] = "0.5,0.3",
    scoring: Annotated[str, typer.Option(help="of a table: auto, exact, letter or likelihood")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_CLIPS} videos: minutes on two CPU cores")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many videos")] = None,
    encoded: Annotated[bool, typer.Option("--encoded", help="send synthetic clips through H.264 files")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, such as prefill.merge_layer=0")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest reply")] = 16,
    device: Annotated[str | None, typer.Option(help="default a GPU if there is one")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for report, table, replies and plot")] = None,
) -> int:
    """Measure how much accuracy reducers keep."""
    settings = load_config(JobConfig, config, set_)
    compared = parse_reducers(reducers, parse_budgets(budgets), settings)
    device = _usable(device) if device else ("cuda" if torch.cuda.is_available() else "cpu")
    if out is not None:
        _make(out)
    limit = limit or (QUICK_CLIPS if quick else None)
    source = Source(benchmark, questions, annotations, videos, scoring, encoded)
    asked = source.load(settings, limit).head(limit)
    checkpoint = Checkpoint.open(settings.model)
    progress = Record(compared, len(asked.videos), errors=list(asked.errors))
    evaluator = Evaluator(checkpoint, compared, max_tokens, device)
    for video, inputs in _read(evaluator, asked.videos, ahead=READ_AHEAD if device != "cpu" else 0):
        progress.add(video, inputs if isinstance(inputs, str) else _run(evaluator, video, inputs))
    rows = summarise(compared, progress.outcomes)
    report = progress.report(asked.name, checkpoint, device, settings, rows)
    _show(rows, progress)
    if out is not None:
        _write(out, report, rows, progress)
    print(json.dumps(report), flush=True)
    return EXIT_TOO_MANY_FAILED if progress.failed > MAX_FAILED_SHARE * len(asked.videos) else 0


def _run(evaluator: Evaluator, video: VideoQuestions, inputs: VideoInputs) -> VideoOutcome | str:
    """One video under all reducers; one that does not fit into memory costs no other."""
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
    """`0.5,0.3` -> [0.5, 0.3]."""
    try:
        budgets = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--budgets {text!r}: {error}; write shares like 0.5,0.3") from error
    if not all(0 < budget <= 1 for budget in budgets):
        raise ConfigError(f"--budgets {text!r}: a budget is a share of the tokens kept, above 0 and at most 1")
    return budgets


@dataclass(frozen=True)
class Source:
    """Where the questions come from, as asked for on the command line."""

    benchmark: str
    questions: Path | None
    annotations: Path | None
    videos: str | None
    scoring: str
    encoded: bool

    def load(self, settings: IndexConfig, limit: int | None) -> Benchmark:
        """All questions, by video.

        Raises:
            SttmError: there is no such benchmark or file, or it holds no question.
        """
        if self.questions is not None:
            return read_table(self.questions, self.videos, settings.video, self.scoring)
        if self.benchmark == "synthetic":
            return synthetic_benchmark(limit or CLIPS, settings.video if self.encoded else None)
        if self.benchmark not in FORMATS:
            raise ConfigError(f"no benchmark {self.benchmark!r}; known: synthetic, {', '.join(FORMATS)}")
        if self.annotations is None or self.videos is None:
            raise ConfigError(f"--benchmark {self.benchmark} needs --annotations FILE and --videos FOLDER")
        return read_benchmark(self.benchmark, self.annotations, self.videos, settings.video)


def _read(
    evaluator: Evaluator, videos: list[VideoQuestions], ahead: int
) -> Iterator[tuple[VideoQuestions, VideoInputs | str]]:
    """Each video with its inputs, or with the reason why there are none; some are read ahead by threads."""

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


@dataclass
class Record:
    """What has been found so far; says so from time to time."""

    reducers: list[Reducer]
    total: int
    outcomes: list[VideoOutcome] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    _printed: float = field(default_factory=time.monotonic)

    def add(self, video: VideoQuestions, outcome: VideoOutcome | str) -> None:
        """One more video is done, or failed for the reason given."""
        if isinstance(outcome, str):
            self.failed += 1
            self.errors += [RowError(question.row, video.name, outcome) for question in video.questions]
        else:
            self.outcomes.append(outcome)
            self.errors += outcome.errors
        if time.monotonic() - self._printed >= PROGRESS_EVERY_S:
            self._printed = time.monotonic()
            done, seconds = len(self.outcomes) + self.failed, time.monotonic() - self.started
            left = (self.total - done) * seconds / done
            print(f"{done}/{self.total} videos  {self.failed} failed  {seconds:.0f} s, {left:.0f} s to go", flush=True)

    def report(
        self, name: str, checkpoint: Checkpoint, device: str, settings: JobConfig, rows: list[Row]
    ) -> dict[str, Any]:
        """The closing JSON."""
        return {
            "benchmark": name,
            "model": checkpoint.name,
            "commit": checkpoint.commit,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
            "torch": str(torch.__version__),
            "settings": settings.model_dump(mode="json", exclude={"run"}),
            "videos": len(self.outcomes),
            "failed_videos": self.failed,
            "errors": len(self.errors),
            "seconds": round(time.monotonic() - self.started, 1),
            "rows": [row.as_json() for row in rows],
        }


def _show(rows: list[Row], record: Record) -> None:
    print(tables(rows) if rows else "no question could be asked")
    for error in record.errors[:ERRORS_SHOWN]:
        print(f"not asked: {error}")
    if len(record.errors) > ERRORS_SHOWN:
        print(f"not asked: {len(record.errors) - ERRORS_SHOWN} more (--out keeps them all)")


def _write(folder: Path, report: dict[str, Any], rows: list[Row], record: Record) -> None:
    """`report.json`, `table.md`, `replies.jsonl` (one line a question, all reducers), with matplotlib `plot.png`."""
    errors = [asdict(error) for error in record.errors]
    (folder / "report.json").write_text(json.dumps({**report, "error_rows": errors}, indent=1))
    (folder / "table.md").write_text(tables(rows) + "\n" if rows else "")
    with (folder / "replies.jsonl").open("w") as file:
        for video in record.outcomes:
            for i, question in enumerate(video.asked):
                replies = {r.label: o.replies[i] for r, o in zip(record.reducers, video.outcomes, strict=True)}
                line = {"video": video.name, "row": question.row, "task": question.task, "question": question.prompt}
                file.write(json.dumps({**line, "answer": question.answer, "replies": replies}) + "\n")
    if not rows:
        return
    try:
        plot(rows, folder / "plot.png", f"{report['benchmark']}, {report['model']}")
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'sttm[eval]')")


def command() -> None:
    """Entry point."""
    run(__doc__, evaluate=evaluate)


if __name__ == "__main__":
    command()
