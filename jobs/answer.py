"""Answer a table of questions about stored videos, on Ray.

    python -m jobs.answer --store s3://bucket/store --questions questions.parquet --out s3://bucket/answers
    python -m jobs.answer --store store --questions q.csv --out answers --format csv --set sampling.max_tokens=16
    ray job submit --working-dir . -- python -m jobs.answer --store ... --questions ... --out ... --set run.gpus=8

The questions are a Parquet, CSV, JSON or JSON lines file on any fsspec URL. Columns:

    video      id, URI or file name of a stored video
    question   what to ask
    id         optional: a name of the row; default its number
    options    optional: a list of answers (in CSV as JSON). The likeliest one is chosen; no text is generated.

The table OUT/answers.parquet (or .jsonl or .csv, see --format) has one row for each question, in the same order; a
question that cannot be answered is an error row. In CSV a list is written as JSON.

Answers are written to OUT/parts while the job runs, always as Parquet. The same command resumes a stopped run, and asks
only what is new in the table. With other sampling settings, all questions are asked again.

The settings that count are those of the sections model, sampling, cache, answer and run; `config show` lists them.

Exit codes: 0 done, 1 cannot run, 3 more than `run.max_failed_share` of the questions failed, 130 stopped by Ctrl-C and
143 by SIGTERM. A stopped run keeps everything that is answered. The last line printed is a JSON summary.
"""

import json
import signal
import time
import uuid
from contextlib import suppress
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from jobs.answering.answer_table import AnswerRow, AnswerTable, FileFormat
from jobs.answering.driver import AnswerDriver
from jobs.answering.plan import make_plan
from jobs.answering.question_task import QuestionTask
from jobs.answering.questions import read_questions
from jobs.answering.run_record import AnswerRecord
from jobs.cluster.session import work_on_ray
from jobs.command import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_TOO_MANY_FAILED,
    AddressOption,
    OptionalConfigOption,
    RecipeOption,
    SetOption,
    StoreOption,
    print_table,
    run,
)
from jobs.config import JobConfig
from sttm.config import load_config
from sttm.errors import ArtifactError, StoreError
from sttm.store.recipes import choose_recipe
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store

_FAILED_SHOWN = 100
_MESSAGE_WIDTH = 80


def answer(
    store: StoreOption,
    questions: Annotated[str, typer.Option(help="table of questions: a path or fsspec URL")],
    out: Annotated[str, typer.Option(help="folder for the answers: a path or s3://bucket/path")],
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="format of the table of answers")
    ] = FileFormat.PARQUET,
    recipe: RecipeOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many questions")] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="ask again what failed in an earlier run")
    ] = False,
    address: AddressOption = None,
    config: OptionalConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Answer every question of a table."""
    settings = load_config(JobConfig, config, set_)
    run_id = time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]
    rows, table, opened = read_questions(questions, limit), AnswerTable(out), Store.open(store)
    chosen = choose_recipe(opened, recipe)
    if chosen.notice:
        print(chosen.notice, flush=True)
    plan = make_plan(rows, opened, table, settings.sampling, run_id, chosen.digest, retry_errors)
    print(f"{len(rows)} questions: {len(plan.todo)} different ones to answer", flush=True)
    record = AnswerRecord(table, run_id, plan)
    stopped_by = None
    if plan.todo:
        driver = AnswerDriver(store, _readable_artifact(opened, plan.todo), settings, run_id, record.on_rows)
        stopped_by = _answer_all(driver, plan.todo, record, address)
    summary, failed = record.summary(), record.failed_rows()
    if not summary["left"]:
        summary["answers"] = table.finish(filter(None, plan.rows_in_order()), file_format)
    _show_failed(failed)
    if stopped_by:
        _show_stopped(summary)
    print(json.dumps(summary), flush=True)
    if stopped_by:
        return EXIT_INTERRUPTED if stopped_by == signal.SIGINT else EXIT_TERMINATED
    return EXIT_TOO_MANY_FAILED if rows and len(failed) / len(rows) > settings.run.max_failed_share else 0


def _answer_all(
    driver: AnswerDriver, tasks: list[QuestionTask], record: AnswerRecord, address: str | None
) -> signal.Signals | None:
    """Run the driver; return the signal that stopped it early, if one did."""
    try:
        return work_on_ray(address, driver.stopping, lambda: driver.run(tasks))
    finally:
        record.flush()


def _readable_artifact(store: Store, tasks: list[QuestionTask]) -> str:
    """The first artifact whose manifest can be read: the manifest says which model to load."""
    for identity in dict.fromkeys(task.identity for task in tasks):
        with suppress(ArtifactError, MissingObjectError):
            return store.manifest(identity).identity
    raise StoreError(f"no manifest of {store.storage.url} can be read; check the store with `store verify`")


def _show_failed(rows: list[AnswerRow]) -> None:
    if not rows:
        return
    table = Table("failed question", "video", "code")
    table.add_column("message", max_width=_MESSAGE_WIDTH)
    for row in rows[:_FAILED_SHOWN]:
        table.add_row(*map(Text, (row.id, row.video, row.error_code, row.error_message)))
    print_table(table)
    if len(rows) > _FAILED_SHOWN:
        print(f"{len(rows) - _FAILED_SHOWN} more questions failed; the table of answers has all of them")


def _show_stopped(summary: dict[str, object]) -> None:
    print(
        f"stopped: {summary['done']} questions answered, {summary['left']} left; the same command resumes", flush=True
    )


def command() -> None:
    """Entry point."""
    run(__doc__, answer=answer)


if __name__ == "__main__":
    command()
