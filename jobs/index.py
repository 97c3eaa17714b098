"""The nightly job: every video of a corpus into a store of KV caches, on Ray.

    python -m jobs.index --config configs/tiny.yaml --corpus clips/ --store /data/store
    ray job submit --working-dir . -- python -m jobs.index --config ... --corpus s3://... --store s3://...

Without a cluster address an embedded Ray runs on this machine. What is stored already is skipped, so the same command
resumes an interrupted run. The last line is a JSON summary. Exit codes: 0 done, 1 cannot run, 3 more than
`run.max_failed_share` of the videos failed, 143 stopped by SIGTERM with everything finished so far committed.
"""

import json
import random
import time
import uuid
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.cluster.session import work_on_ray
from jobs.command import EXIT_TERMINATED, EXIT_TOO_MANY_FAILED, run
from jobs.config import JobConfig
from jobs.indexing.driver import Driver
from jobs.indexing.plan import make_plan, print_plan
from jobs.indexing.progress import Progress
from jobs.indexing.run_record import RunRecord
from sttm.config import index_recipe, load_config
from sttm.corpus import VideoRef, list_corpus
from sttm.models.checkpoint import Checkpoint
from sttm.store.key import Recipe
from sttm.store.store import Store


def index(
    corpus: Annotated[str, typer.Option(help="folder, glob, file or manifest of videos, on any fsspec URL")],
    store: Annotated[str, typer.Option(help="where to put the artifacts: a folder, s3:// or gs://")],
    config: Annotated[str, typer.Option(help="YAML settings")] = "configs/tiny.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, such as merge.budget=0.5")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many videos")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and its cost, do nothing")] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="try videos again that failed before")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default $RAY_ADDRESS, else an embedded Ray")] = None,
    run_id: Annotated[str | None, typer.Option(help="name of this run; default made from the time")] = None,
) -> int:
    """Index a corpus of videos into a store."""
    job = load_config(JobConfig, config, set_)
    checkpoint = Checkpoint.open(job.model)
    recipe = index_recipe(job.index, checkpoint)
    _ = checkpoint.family_class  # an unsupported model is an error before any work
    refs = list_corpus(corpus, limit=limit)
    opened = None if dry_run and not _store_exists(store) else Store.open(store, create=not dry_run)
    if opened is not None and not dry_run:
        opened.catalog.repair()  # rows that a killed run could not write
    plan = make_plan(refs, recipe, opened, retry_errors)
    print(
        f"{len(refs)} videos: {len(plan.todo)} to index, {plan.stored} stored already, {plan.known_bad} failed before"
        + (" (--retry-errors tries them again)" if plan.known_bad else ""),
        flush=True,
    )
    if dry_run or opened is None:
        print_plan(plan, opened, recipe, job.run.gpus_per_model)
        return 0
    run_id = run_id or time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]
    record = RunRecord(opened, recipe, run_id, len(refs), Progress(len(plan.todo)))
    terminated = _index_all(job, recipe, store, plan.todo, record, address) if plan.todo else False
    return _finish(record, job.run.max_failed_share, terminated)


def _index_all(
    job: JobConfig, recipe: Recipe, store_url: str, refs: list[VideoRef], record: RunRecord, address: str | None
) -> bool:
    """Run the driver; True if SIGTERM ended it early."""
    driver = Driver(job.index, job.run, recipe, store_url, record.run_id, record)
    refs = sorted(refs, key=lambda ref: -(ref.size_bytes or 0))  # the longest first, so that none ends alone
    if record.others:
        print(f"{', '.join(record.others)} is at work on the same recipe: sharing the videos with it", flush=True)
        random.Random(record.run_id).shuffle(refs)  # noqa: S311 (in another order, so that the two seldom meet)

    def work() -> None:
        with record.progress:
            driver.run(refs)

    try:
        work_on_ray(address, driver.stopping, work)
    finally:
        record.end()
    return driver.stopping.is_set()


def _finish(record: RunRecord, max_failed_share: float, terminated: bool) -> int:
    p, summary = record.progress, record.summary()
    if p.total:
        print_results(record, summary)
    else:
        print("nothing to do")
    print(json.dumps(summary), flush=True)
    if terminated:
        return EXIT_TERMINATED
    return EXIT_TOO_MANY_FAILED if p.total and p.failed / p.total > max_failed_share else 0


def print_results(record: RunRecord, summary: dict[str, object]) -> None:
    """The closing table: counts, then one line a failed video."""
    console = Console()
    table = Table(show_header=False)
    for name, value in summary.items():
        table.add_row(name, Text(str(value)))
    console.print(table)
    if record.errors:
        errors = Table("failed video", "code", "message")
        for row in record.errors[:100]:
            errors.add_row(*map(Text, (row.name, row.error_code, row.error_message)))
        console.print(errors)


def _store_exists(url: str) -> bool:
    from sttm.store.storage import Storage

    return Storage(url).exists("format.json")


def command() -> None:
    """Entry point."""
    run(__doc__, index=index)


if __name__ == "__main__":
    command()
