"""What one run did so far: catalog rows in batches, and `runs/<run_id>.json`, rewritten while it runs.

The record is also the run's heartbeat: another run of the same recipe sees from it that it is not alone.
"""

import functools
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.metrics import Pipeline, RunMetrics
from jobs.progress import Progress
from jobs.video_log import log_video
from sttm.corpus import VideoRef
from sttm.store.catalog import CatalogRow
from sttm.store.key import Recipe, recipe_digest, source_key
from sttm.store.store import Store

FLUSH_ROWS = 64
FLUSH_EVERY_S = 10.0
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
        self._stored_elsewhere: set[str] = set()
        self._gpu_idle_share: float | None = None
        self.others = self._live_runs()
        if progress.total:
            self._write("running")

    @functools.cached_property
    def _metrics(self) -> RunMetrics:
        """Made when the first video moves: by then Ray runs."""
        return RunMetrics()

    def tick(self, pipeline: Pipeline) -> None:
        """Show the counts, and write what has gathered, if it is time to."""
        self.progress.show()
        self._metrics.observe(pipeline)
        self._gpu_idle_share = pipeline.gpu_idle_share
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._flush("running")

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
        """One more artifact is committed."""
        p = self.progress
        p.done += 1
        p.bytes_written += row.kv_bytes + row.tokens_bytes
        p.tokens_before += row.tokens_before
        p.tokens_after += row.tokens_after
        self._rows.append(row)
        self._metrics.stored(row)
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
        """Put the last rows into the catalog and close the record."""
        self._flush("ended")

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

    def _flush(self, status: str) -> None:
        self.store.catalog.append(self._rows)
        self._rows, self._flushed = [], time.monotonic()
        self._write(status)
        self.others = self._live_runs()
        if self.others:
            rows = self.store.catalog.rows()
            self._stored_elsewhere = {r.source_key for r in rows if r.status == "ok" and r.run_id != self.run_id}

    def _write(self, status: str) -> None:
        report = {
            **self.summary(),
            "status": status,
            "recipe_digest": self._digest,
            "updated_at": datetime.now(UTC).isoformat(),
            "errors": [asdict(row) for row in self.errors],
        }
        self.store.storage.put(f"runs/{self.run_id}.json", json.dumps(report, indent=1).encode())

    def _live_runs(self) -> list[str]:
        storage = self.store.storage
        fresh = [e.key for e in storage.entries("runs") if datetime.now(UTC) - e.modified < SILENT_FOR]
        found = []
        for key in fresh:
            report = json.loads(storage.read(key))
            if report.get("status") == "running" and report.get("recipe_digest") == self._digest:
                found.append(str(report.get("run_id")))
        return sorted(set(found) - {self.run_id})
