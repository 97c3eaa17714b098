"""What one run did so far: catalog rows in batches, and `runs/<run_id>.json`, rewritten while it runs.

The record is also the run's heartbeat: another run of the same recipe sees from it that it is not alone.
"""

import functools
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.indexing.metrics import Pipeline, RunMetrics
from jobs.indexing.progress import Progress
from jobs.indexing.video_log import log_video
from sttm.corpus import VideoRef
from sttm.errors import StoreError
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, recipe_digest, source_key
from sttm.store.store import Store
from sttm.urls import redact_url

FLUSH_EVERY_S = 10.0
SHOWN_ERRORS = 100  # in the record while the run lasts: writing all of them each time would take longer and longer
SILENT_FOR = timedelta(seconds=6 * FLUSH_EVERY_S)  # a run that wrote nothing for so long is dead


def key_of(ref: VideoRef, recipe: Recipe) -> str:
    """Source key of a listed video; a file of unknown size counts as size 0."""
    return source_key(ref.uri, ref.size_bytes or 0, ref.version, recipe)


class RunRecord:
    """Hears how each video ended; keeps catalog, run record, metrics, log and screen up to date.

    Args:
        store: where the rows and the record go.
        recipe: of this run.
        run_id: of this run.
        videos: in the corpus, those not to be indexed now included.
        progress: counts shown to a person; its total is what this run has to do.

    Attributes:
        others: ids of other live runs of the same recipe, as of the last flush.
        errors: error rows of this run.
    """

    def __init__(self, store: Store, recipe: Recipe, run_id: str, videos: int, progress: Progress) -> None:
        self.store, self.recipe, self.run_id, self.progress = store, recipe, run_id, progress
        self.errors: list[CatalogRow] = []
        self._videos = videos
        self._digest = recipe_digest(recipe)
        self._rows: list[CatalogRow] = []
        self._flushed = time.monotonic()
        self._made: set[str] = set()
        self._stored_elsewhere: set[str] = set()
        self._gpu_idle_share: float | None = None
        self.others = self._live_runs()
        if progress.total:
            self._write("running", SHOWN_ERRORS)

    @functools.cached_property
    def _metrics(self) -> RunMetrics:
        """Made when the first video moves: by then Ray runs."""
        return RunMetrics()

    def tick(self, pipeline: Pipeline) -> None:
        """Show the counts, and write what has gathered, if it is time to; if the store is away, the next time."""
        self.progress.show()
        self._metrics.observe(pipeline)
        self._gpu_idle_share = pipeline.gpu_idle_share
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            try:
                self._flush("running", SHOWN_ERRORS)
            except StoreError as error:
                print(f"{len(self._rows)} rows wait for the store: {error}", file=sys.stderr, flush=True)
            self._flushed = time.monotonic()

    def is_stored(self, ref: VideoRef) -> bool:
        """Whether another run has stored this video, as far as the last flush knows; counts it as skipped."""
        found = key_of(ref, self.recipe) in self._stored_elsewhere
        self.progress.skipped += found
        if found:
            self._metrics.skipped()
        return found

    def decoded(self, ref: VideoRef, frames: int) -> None:
        """One more video is decoded."""
        self._metrics.decoded(frames)

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        """One more video has an artifact; content that was stored already, under whatever name, counts as skipped."""
        p = self.progress
        if row.run_id == self.run_id and row.identity not in self._made:
            self._made.add(row.identity)
            p.done += 1
            p.bytes_written += row.kv_bytes + row.tokens_bytes
            p.tokens_before += row.tokens_before
            p.tokens_after += row.tokens_after
            self._metrics.stored(row)
        else:
            p.skipped += 1
            self._metrics.skipped()
        self._rows.append(row)
        log_video(row)

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        """One more video cannot be indexed."""
        row = CatalogRow(
            video_id=ref.video_id,
            uri=ref.uri,
            name=ref.name,
            status="error",
            recipe_digest=self._digest,
            source_key=key_of(ref, self.recipe),
            error_code=code,
            error_message=message,
            run_id=self.run_id,
        )
        self.progress.failed += 1
        self.errors.append(row)
        self._rows.append(row)
        self._metrics.failed(code)
        log_video(row)

    def end(self) -> None:
        """Put the last rows into the catalog and close the record.

        Raises:
            StoreError: the store does not take them.
        """
        self._flush("ended", len(self.errors))

    def summary(self) -> dict[str, Any]:
        """The counts, as the job's last line and the record have them."""
        p = self.progress
        return {
            "run_id": self.run_id,
            "total": self._videos,
            "done": p.done,
            "skipped": self._videos - p.total + p.skipped,
            "failed": p.failed,
            "left": p.total - p.done - p.failed - p.skipped,
            "seconds": round(p.seconds, 3),
            "retained_ratio": round(p.retained_ratio, 4),
            "bytes_written": p.bytes_written,
            "gpu_idle_share": None if self._gpu_idle_share is None else round(self._gpu_idle_share, 4),
        }

    def _flush(self, status: str, errors: int) -> None:
        self.store.catalog.append(self._rows)
        self._rows = []
        self._write(status, errors)
        self.others = self._live_runs()
        if self.others:
            rows = self.store.catalog.rows()
            self._stored_elsewhere = {r.source_key for r in rows if r.status == "ok" and r.run_id != self.run_id}

    def _write(self, status: str, errors: int) -> None:
        """Rewrite the record with the last so many errors."""
        last = self.errors[max(0, len(self.errors) - errors) :]
        report = {
            **self.summary(),
            "status": status,
            "recipe_digest": self._digest,
            "updated_at": datetime.now(UTC).isoformat(),
            "errors": [{**asdict(row), "uri": redact_url(row.uri)} for row in last],
        }
        self.store.storage.put(f"runs/{self.run_id}.json", json.dumps(report, indent=1).encode())

    def _live_runs(self) -> list[str]:
        fresh = [e.key for e in self.store.storage.entries("runs") if datetime.now(UTC) - e.modified < SILENT_FOR]
        reports = [report for report in map(self._read, fresh) if report.get("recipe_digest") == self._digest]
        found = {str(report.get("run_id")) for report in reports if report.get("status") == "running"}
        return sorted(found - {self.run_id})

    def _read(self, key: str) -> dict[str, Any]:
        """A run's record; empty if it is none, or gone since it was listed: nobody's record may stop another run."""
        try:
            report = json.loads(self.store.storage.read(key))
        except (ValueError, RecursionError, StoreError):
            return {}
        return report if isinstance(report, dict) else {}
