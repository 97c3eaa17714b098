"""Answer a table of questions about stored videos, on Ray.

    python -m jobs.answer --store s3://bucket/store --questions questions.parquet --out s3://bucket/answers
    ray job submit --working-dir . -- python -m jobs.answer --store ... --questions ... --out ...

The questions (Parquet, CSV, JSON lines, on any fsspec URL) have columns `video` (id, URI or name) and `question`, and
if you like `id` and `options` (a list: the likeliest is chosen, nothing is generated). `<out>/answers.parquet` has one
row each, in the same order; a question that cannot be answered is an error row. Each cache is loaded once. The same
command resumes a stopped run. The last line is a JSON summary. Exit codes: 0 done, 1 cannot run, 3 more than
`--max-failed-share` of the questions failed, 143 stopped by SIGTERM with everything answered so far kept.
"""

import json
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

import typer

from jobs.answering.actor import AnswerConfig, Asked
from jobs.answering.answer_table import FINAL, AnswerTable
from jobs.answering.driver import AnswerDriver, AnswerRunConfig
from jobs.answering.plan import make_plan
from jobs.answering.questions import read_questions
from jobs.answering.run_record import AnswerRecord
from jobs.cluster.session import work_on_ray
from jobs.command import EXIT_TERMINATED, EXIT_TOO_MANY_FAILED, run
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ArtifactError, StoreError
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store


def answer(
    store: Annotated[str, typer.Option(help="a store that jobs.index filled")],
    questions: Annotated[str, typer.Option(help="table of questions, any fsspec URL")],
    out: Annotated[str, typer.Option(help="folder for the answers: local, s3://, gs://")],
    model: Annotated[str | None, typer.Option(help="checkpoint; default the one that made the caches")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="sample from this much probability")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="makes sampling repeatable")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends an answer")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many questions")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default as many as the GPUs hold")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="how many, those an autoscaler adds included")] = None,
    gpus_per_model: Annotated[int, typer.Option(min=1, help="GPUs an actor spreads its model over")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="questions answered at once")] = 64,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="ask again what failed before")] = False,
    max_failed_share: Annotated[float, typer.Option(min=0, max=1, help="of the questions, for exit code 3")] = 0.5,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default $RAY_ADDRESS, else an embedded Ray")] = None,
) -> int:
    """Answer every question of a table."""
    sampling = SamplingConfig.checked(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    config = AnswerConfig(sampling=sampling, stop=tuple(stop or ()))
    run_id = time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]
    rows, table, opened = read_questions(questions, limit), AnswerTable(out), Store.open(store)
    plan = make_plan(rows, opened, table, config, retry_errors, run_id)
    print(f"{len(rows)} questions: {len(plan.todo)} different ones to answer", flush=True)
    record = AnswerRecord(table, run_id, plan)
    is_terminated = False
    if plan.todo:
        settings = AnswerRunConfig(gpus=gpus, workers=workers, gpus_per_model=gpus_per_model, batch_rows=batch)
        driver = AnswerDriver(store, _sound(opened, plan.todo), model, config, settings, run_id, record.hear)
        try:
            work_on_ray(address, driver.stopping, lambda: driver.run(plan.todo))
        finally:
            record.flush()
        is_terminated = driver.stopping.is_set()
    summary = record.summary()
    if not summary["left"]:
        table.finish(replace(plan.known[key], id=row.id) for key, row in zip(plan.keys, rows, strict=True))
        summary["answers"] = f"{table.storage.url}/{FINAL}"
    print(json.dumps(summary), flush=True)
    if is_terminated:
        return EXIT_TERMINATED
    return EXIT_TOO_MANY_FAILED if rows and summary["failed"] / len(rows) > max_failed_share else 0


def _sound(store: Store, asked: list[Asked]) -> str:
    """The first artifact whose manifest can be read: it says which model to load."""
    for identity in dict.fromkeys(one.identity for one in asked):
        with suppress(ArtifactError, MissingObjectError):
            return store.manifest(identity).identity
    raise StoreError(f"no manifest of {store.storage.url} can be read; verify the store")


def command() -> None:
    """Entry point."""
    run(__doc__, answer=answer)


if __name__ == "__main__":
    command()
