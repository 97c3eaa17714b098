"""What one run has done so far: catalog rows, added in batches, and `runs/<run_id>.json`, rewritten while it runs.

The record says how the run was started (`jobs.indexing.launch`), how far it is, and its status:

    running    the run is at work, or was killed and no later run has found out yet
    finished   every video was indexed, failed or was skipped
    stopped    SIGTERM or Ctrl-C ended the run early
    failed     an error ended the run; `error` names it
    killed     the run ended without a word; a later run has found out (`jobs.indexing.other_runs`)
"""

import functools
import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.indexing.heartbeat import Beat, Heartbeat
from jobs.indexing.launch import Launch, redacted
from jobs.indexing.metrics import Pipeline, RunMetrics
from jobs.indexing.other_runs import OtherRuns, record_key
from jobs.indexing.progress import Progress
from jobs.indexing.video_log import log_video
from sttm.corpus.listing import VideoRef
from sttm.errors import StoreError
from sttm.index_plan import Plan, error_row, key_of
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, recipe_digest
from sttm.store.store import Store
from sttm.urls import redact_url

FLUSH_EVERY_S = 10.0
OBSERVE_EVERY_S = 1.0  # Ray passes gauges on every ten seconds, and there is one for each actor
SHOWN_ERRORS = 100  # in the record while the run lasts: writing all of them each time would take longer and longer

Status = Literal["running", "finished", "stopped", "failed"]


class RunRecord:
    """Takes what happened to each video; keeps the catalog, the run's record, metrics, log and screen up to date.

    Args:
        store: the store that the rows and the record go to.
        recipe: what this run indexes with.
        run_id: name of this run.
        plan: what this run has to do.
        launch: how this run was started.

    Attributes:
        progress: the counts shown to a person.
        others: the other runs in this store.
        errors: catalog rows of the videos that failed in this run.
    """

    def __init__(self, store: Store, recipe: Recipe, run_id: str, plan: Plan, launch: Launch) -> None:
        self.store, self.recipe, self.run_id, self.plan = store, recipe, run_id, plan
        self.progress = Progress(len(plan.todo))
        self.errors: list[CatalogRow] = []
        self._launch = launch.as_record()
        self._digest = recipe_digest(recipe)
        self._rows: list[CatalogRow] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flush: Future[None] | None = None
        self._flushed = time.monotonic()
        self._observed = float("-inf")
        self._made: set[str] = set()
        self._stored_elsewhere: set[str] = set()
        self._seen_version = plan.catalog_version
        self._named_others: set[str] = set()
        self._gpu_idle_share: float | None = None
        beat = Beat.of_this_process(run_id, self._digest)
        self._heartbeat = Heartbeat(store.storage, beat)
        self.others = OtherRuns(store.storage, beat)

    def begin(self) -> None:
        """Write the record for the first time, show other runs that this one lives, and look for other runs.

        Raises:
            StoreError: the store cannot be listed or written.
        """
        self._heartbeat.start()  # first: a run that is killed after its first record is found by its heartbeat
        self._write("running", SHOWN_ERRORS)
        self.others.look()
        self._name_others()

    def end(self, status: Status, error: BaseException | None = None) -> None:
        """Put the last rows into the catalog and close the record, after what is being written now.

        Args:
            status: how the run ended.
            error: the error that ended the run, if one did.

        Raises:
            StoreError: the store does not take them.
        """
        self.settle()
        self._append_rows()
        self._write(status, len(self.errors), error)
        self._heartbeat.stop()

    def tick(self, pipeline: Pipeline) -> None:
        """Show the counts and begin to write what has gathered, each when its time has come.

        A thread writes, so that a slow store holds up no video. What the store does not take is written the next time.
        """
        self.progress.show()
        self._gpu_idle_share = pipeline.gpu_idle_share
        may_be_last = not pipeline.places.get("gpu")
        if may_be_last or time.monotonic() - self._observed >= OBSERVE_EVERY_S:
            self._metrics.observe(pipeline)
            self._observed = time.monotonic()
        if self._flush is not None and self._flush.done():
            self.settle()
        if self._flush is None and time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._flush = self._thread.submit(self._write_all)

    def settle(self) -> None:
        """Wait for what is being written, and say so if the store does not take it."""
        if self._flush is None:
            return
        try:
            self._flush.result()
        except StoreError as error:
            print(f"{len(self._rows)} rows wait for the store: {error}", file=sys.stderr, flush=True)
        self._flush, self._flushed = None, time.monotonic()

    def is_stored(self, ref: VideoRef) -> bool:
        """Whether another run has stored this video, as far as the last flush knows; such a video counts as skipped."""
        found = bool(self._stored_elsewhere) and key_of(ref, self.recipe) in self._stored_elsewhere
        self.progress.skipped += found
        if found:
            self._metrics.skipped()
        return found

    def decoded(self, ref: VideoRef, frames: int) -> None:
        """Count the frames of a video that was decoded."""
        self._metrics.decoded(frames)

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        """Note that a video has an artifact; content that was stored already, under any name, counts as skipped."""
        p = self.progress
        if row.run_id == self.run_id and row.identity not in self._made:
            self._made.add(row.identity)
            p.add(row)
            self._metrics.stored(row)
        else:
            p.skipped += 1
            self._metrics.skipped()
        self._rows.append(row)
        log_video(row)

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        """Note that a video cannot be indexed."""
        row = error_row(ref, self.recipe, self.run_id, code, message)
        self.progress.failed += 1
        self.errors.append(row)
        self._rows.append(row)
        self._metrics.failed(code)
        log_video(row)

    def summary(self) -> dict[str, Any]:
        """The counts, as the record and the last line of the job have them; every video counts in exactly one of
        `done`, `skipped`, `failed`, `failed_before` and `left`.
        """
        p = self.progress
        return {
            "run_id": self.run_id,
            "total": self.plan.videos,
            "done": p.done,
            "skipped": self.plan.stored + p.skipped,
            "failed": p.failed,
            "failed_before": len(self.plan.failed_before),
            "left": p.total - p.done - p.failed - p.skipped,
            "seconds": round(p.seconds, 3),
            **p.frames.as_record(),
            "retained_ratio": round(p.retained_ratio, 4),
            "bytes_written": p.bytes_written,
            "gpu_idle_share": None if self._gpu_idle_share is None else round(self._gpu_idle_share, 4),
        }

    @functools.cached_property
    def _metrics(self) -> RunMetrics:
        """The metrics, made when they are first needed: by then Ray runs."""
        return RunMetrics()

    def _append_rows(self) -> None:
        rows = list(self._rows)
        self.store.catalog.append(rows)
        del self._rows[: len(rows)]  # the driver may have added others meanwhile

    def _write_all(self) -> None:
        self._append_rows()
        self._write("running", SHOWN_ERRORS)
        self.others.look()
        self._name_others()
        if self.others.at_work:
            reader = self.store.catalog.reader()
            rows = reader.added_since(self._seen_version, ("source_key", "status", "run_id"))
            self._stored_elsewhere |= {r.source_key for r in rows if r.status == "ok" and r.run_id != self.run_id}
            self._seen_version = reader.snapshot.version

    def _name_others(self) -> None:
        for run_id in sorted(set(self.others.at_work) - self._named_others):
            self._named_others.add(run_id)
            print(f"{run_id} is at work on the same recipe: sharing the videos with it", flush=True)

    def _write(self, status: Status, errors: int, error: BaseException | None = None) -> None:
        """Rewrite the record with at most the last `errors` rows of failed videos."""
        last = self.errors[max(0, len(self.errors) - errors) :]
        record = {
            **self.summary(),
            "status": status,
            "error": None if error is None else f"{type(error).__name__}: {error}",
            "recipe_digest": self._digest,
            **self._launch,
            "updated_at": datetime.now(UTC).isoformat(),
            "errors": [{**asdict(row), "uri": redact_url(row.uri)} for row in last],
        }
        self.store.storage.put(record_key(self.run_id), json.dumps(redacted(record), indent=1).encode())
