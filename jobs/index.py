"""Index a corpus of videos into a store of KV caches, on Ray.

Each video is decoded, prefilled through the model with merged visual tokens, and stored, so that questions about it
are answered later without reading it again.

    python -m jobs.index --corpus clips/ --store /data/store
    python -m jobs.index --corpus s3://bucket/videos.parquet --store s3://bucket/store --config qwen2_5_vl_7b
    ray job submit --working-dir . -- python -m jobs.index --corpus s3://... --store s3://...

Without a cluster address Ray starts on this machine. What is stored already is skipped, so the same command goes on
with an interrupted run. The last line is a JSON summary; runs/RUN_ID.json in the store keeps it with the settings.

Exit codes:

    0      done
    1      cannot run; the last line on standard error says why
    3      more than run.max_failed_share of the videos have failed, now or before
    130    stopped by Ctrl-C
    143    stopped by SIGTERM

The first Ctrl-C, or SIGTERM, lets no new video begin; the videos on the GPUs are finished and stored. A second Ctrl-C
ends at once.
"""

import random
import sys
import time
import uuid
from contextlib import suppress
from typing import Annotated

import typer

from jobs.cluster.session import work_on_ray
from jobs.cluster.size import cluster_size
from jobs.command import EXIT_INTERRUPTED, AddressOption, ConfigOption, SetOption, StoreOption, run
from jobs.config import JobConfig
from jobs.indexing.driver import Driver
from jobs.indexing.dry_run import print_plan
from jobs.indexing.heartbeat import FOLDER as HEARTBEATS
from jobs.indexing.launch import Launch
from jobs.indexing.results import exit_code, print_results
from jobs.indexing.run_record import RunRecord
from sttm.config import index_recipe, load_config
from sttm.corpus.listing import scan_corpus
from sttm.engine.prefill import require_possible
from sttm.errors import StoreError
from sttm.index_plan import make_plan
from sttm.models.checkpoint import Checkpoint
from sttm.store.storage import Storage
from sttm.store.store import Store
from sttm.urls import redact_url


def index(
    corpus: Annotated[str, typer.Option(help="videos: a folder, glob, file or table of URIs, on any fsspec URL")],
    store: StoreOption,
    config: ConfigOption = "tiny",
    set_: SetOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many videos")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and its cost, do nothing")] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="try videos again that failed before")] = False,
    address: AddressOption = None,
    run_id: Annotated[str | None, typer.Option(help="name of this run; default made from the time")] = None,
) -> int:
    """Index a corpus of videos into a store."""
    job = load_config(JobConfig, config, set_)
    _say(f"opening the model {job.model.path or 'tiny'}")
    checkpoint = Checkpoint.open(job.model)
    recipe = index_recipe(job.index, checkpoint)
    # What fits no model or no video is an error before any work.
    _ = checkpoint.family_class
    require_possible(checkpoint.config.get_text_config(), job.merge, job.prefill)
    _say(f"listing the videos of {redact_url(corpus)}")
    listing = scan_corpus(corpus, limit=limit)
    if listing.left_out:
        _say(listing.left_out_line)
    _say(f"reading the catalog of {redact_url(store)}")
    opened = None if dry_run and not Storage(store).exists("format.json") else Store.open(store, create=not dry_run)
    if opened is not None and not dry_run:
        _add_rows_of_killed_runs(opened)
    plan = make_plan(listing.refs, recipe, opened, retry_errors)
    _say(str(plan))
    if plan.todo and checkpoint.notice:
        print(checkpoint.notice, file=sys.stderr, flush=True)
    if dry_run or opened is None:
        run = job.run
        print_plan(plan, opened, recipe, run.gpus_per_model, cluster_size(address, run.gpus))
        return 0
    run_id = run_id or time.strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]
    record = RunRecord(opened, recipe, run_id, plan, Launch.now(job, corpus, store, checkpoint))
    if not plan.todo:
        record.others.look()  # a killed run is found out by the next one, even by one with nothing to do
    stopped = _index_all(job, record, store, address) if plan.todo else 0
    print_results(record, was_stopped=bool(stopped))
    return stopped or exit_code(record, job.run.max_failed_share)


def _add_rows_of_killed_runs(store: Store) -> None:
    """Add the rows that killed runs could not write; their heartbeats stay until a later run finds them out."""
    if store.storage.keys(HEARTBEATS) or not store.catalog.log.newest().version:
        store.catalog.repair()


def _index_all(job: JobConfig, record: RunRecord, store_url: str, address: str | None) -> int:
    """Index all videos of the record's plan; return 0, or the exit code that tells which signal stopped it."""
    driver = Driver(job.index, job.run, record.recipe, store_url, record.run_id, record)
    record.begin()
    # The longest first, so that none ends alone.
    refs = sorted(record.plan.todo, key=lambda ref: -(ref.size_bytes or 0))
    if record.others.at_work or record.others.in_doubt:
        random.Random(record.run_id).shuffle(refs)  # noqa: S311 (another order than theirs, so that runs seldom meet)

    def work() -> None:
        with record.progress:
            driver.run(refs)

    try:
        came = work_on_ray(address, driver.stopping, work)
    except KeyboardInterrupt:
        record.end("stopped")
        return EXIT_INTERRUPTED
    except BaseException as error:
        with suppress(StoreError):  # the first error says more
            record.end("failed", error)
        raise
    record.end("finished" if came is None else "stopped")
    return 0 if came is None else 128 + came


def _say(text: str) -> None:
    print(text, flush=True)


def command() -> None:
    """Entry point."""
    run(__doc__, index=index)


if __name__ == "__main__":
    command()
