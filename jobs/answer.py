"""Answer a table of questions about stored videos, on Ray.

    python -m jobs.answer --store s3://bucket/store --questions questions.parquet --out s3://bucket/answers
    ray job submit --working-dir . -- python -m jobs.answer --store ... --questions ... --out ...

The questions (Parquet, CSV, JSON lines, on any fsspec URL) have columns `video` (id, URI or name) and `question`, and
if you like `id` and `options` (a list: the likeliest is chosen, nothing is generated). `<out>/answers.parquet` has one
row each, in the same order; a question that cannot be answered is an error row. Each cache is loaded once. The same
command resumes a stopped run. The last line is a JSON summary. Exit codes: 0 done, 1 cannot run, 3 more than
`--max-failed-share` of the questions failed, 143 stopped by SIGTERM with everything answered so far kept.
"""

import hashlib
import json
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from jobs.answering.actor import AnswerConfig, Asked
from jobs.answering.answer_table import FINAL, AnswerRow, AnswerTable
from jobs.answering.driver import AnswerDriver, AnswerRunConfig
from jobs.answering.questions import AskedRow, read_questions
from jobs.cluster.session import work_on_ray
from jobs.command import EXIT_TERMINATED, EXIT_TOO_MANY_FAILED, run
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ArtifactError, StoreError
from sttm.store.catalog.view import CatalogView
from sttm.store.key import canonical_json
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store

FLUSH_EVERY_S, PRINT_EVERY_S = 10.0, 5.0


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


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        keys: of every question, in order; equal questions share a key.
        known: rows that exist by key, errors found while planning included; the run adds to it.
        todo: questions to ask, each key once.
    """

    keys: list[str]
    known: dict[str, AnswerRow]
    todo: list[Asked]


def make_plan(
    rows: list[AskedRow], store: Store, table: AnswerTable, config: AnswerConfig, retry_errors: bool, run_id: str
) -> Plan:
    """Look every question up in the catalog and among the answers there are; reads no artifact."""
    catalog = CatalogView(store.storage, max_age_s=float("inf"))
    # `lost`: an outage, which says nothing of the question.
    known = {
        key: row
        for key, row in table.rows().items()
        if row.status == "ok" or not (retry_errors or row.error_code == "lost")
    }
    keys: list[str] = []
    todo: dict[str, Asked] = {}
    for row in rows:
        asked, fault = _resolve(row, catalog, config)
        keys.append(asked.key)
        if fault is not None:
            known[asked.key] = asked.error(*fault, run_id)
        elif asked.key not in known:
            todo[asked.key] = asked
    return Plan(keys, known, list(todo.values()))


def _resolve(row: AskedRow, catalog: CatalogView, config: AnswerConfig) -> tuple[Asked, tuple[str, str] | None]:
    """The question with its artifact, or the code and message of why there is none."""
    video_id = identity = ""
    fault = ("bad_row", row.error) if row.error else None
    if fault is None:
        try:
            found = catalog.find(row.video)
            video_id, identity = found.video_id, found.identity
        except StoreError as error:
            fault = ("no_video", str(error))
    about: dict[str, Any] = {"video": row.video, "question": row.question, "options": row.options}
    about |= {"config": config.model_dump(mode="json"), "identity": identity, "row": row.id if fault else ""}
    key = hashlib.sha256(canonical_json(about)).hexdigest()
    return Asked(key, row, video_id, identity), fault


class AnswerRecord:
    """Hears rows, keeps them in parts, counts them, and tells a person now and then."""

    def __init__(self, table: AnswerTable, run_id: str, plan: Plan) -> None:
        self._table, self._run_id, self._plan = table, run_id, plan
        self._rows: list[AnswerRow] = []
        self._heard = self._parts = self._tokens = 0
        self._started = self._flushed = self._printed = time.monotonic()

    def hear(self, rows: list[AnswerRow]) -> None:
        """Take finished rows; if they cannot be written now, they wait for the next time."""
        for row in rows:
            self._plan.known[row.key] = row
            self._heard += 1
            self._tokens += row.completion_tokens
        self._rows += rows
        now = time.monotonic()
        if now - self._flushed >= FLUSH_EVERY_S:
            try:
                self.flush()
            except StoreError as error:
                print(f"{len(self._rows)} answers wait to be written: {error}", file=sys.stderr, flush=True)
            self._flushed = time.monotonic()
        if now - self._printed >= PRINT_EVERY_S:
            self._printed = now
            print(f"{self._heard} of {len(self._plan.todo)}  {self._heard / (now - self._started):.1f}/s", flush=True)

    def flush(self) -> None:
        """Write what has gathered.

        Raises:
            StoreError: it cannot be written.
        """
        if self._rows:
            self._table.add(f"{self._run_id}-{self._parts:06d}", self._rows)
            self._rows, self._parts = [], self._parts + 1

    def summary(self) -> dict[str, Any]:
        """How each row of the table ended: answered by this run (`done`) or before (`skipped`), failed, or left."""
        rows = [self._plan.known.get(key) for key in self._plan.keys]
        answered = [row for row in rows if row is not None and row.status == "ok"]
        done = sum(row.run_id == self._run_id for row in answered)
        return {
            "run_id": self._run_id,
            "total": len(rows),
            "done": done,
            "skipped": len(answered) - done,
            "failed": sum(row is not None and row.status == "error" for row in rows),
            "left": rows.count(None),
            "completion_tokens": self._tokens,
            "seconds": round(time.monotonic() - self._started, 3),
        }


def command() -> None:
    """Entry point."""
    run(answer=answer)


if __name__ == "__main__":
    command()
