"""Watch an index job, and tell its steady state from its beginning."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.indexing.metrics import Pipeline
from sttm.corpus.listing import VideoRef
from sttm.errors import SttmError
from sttm.indexer import GPU_STAGES
from sttm.store.catalog.row import CatalogRow
from sttm.store.store import Store


class PipelineError(SttmError):
    """The benchmark could not index its own videos, or its run was too short."""


@dataclass(frozen=True)
class SteadyState:
    """The part of a run from the time when it is under way to its last video.

    Attributes:
        rows: catalog rows of the videos finished in this time.
        seconds: length of this time.
    """

    rows: list[CatalogRow]
    seconds: float

    @property
    def videos_per_s(self) -> float:
        """Videos finished in a second."""
        return len(self.rows) / self.seconds

    @property
    def gpu_s(self) -> float:
        """Seconds that the GPUs worked on these videos, all GPUs together; without a GPU, seconds of the model."""
        return sum(row.timings_s.get(stage, 0.0) for row in self.rows for stage in GPU_STAGES)

    @property
    def decode_s(self) -> float:
        """Seconds from the beginning to the end of decoding a video, on average, beside everything else."""
        return sum(row.timings_s["decode"] for row in self.rows) / len(self.rows)


def steady_state(ready: float, drained: float, rows: Sequence[tuple[float, CatalogRow]], held: int) -> SteadyState:
    """The part of a run in which the job neither starts nor lives on what was decoded while the models loaded.

    It begins when every actor is ready and has finished as many videos as it holds at a time, because an actor compiles
    and loads GPU code during its first videos. If the actors wait for decoding, it begins only when they have used up
    what was decoded ahead. It ends with the last video.

    Args:
        ready: time at which the last actor was ready.
        drained: time at which no decoded video waited for an actor for the first time, with more to decode; inf if one
            always waited.
        rows: the catalog rows in the order in which they came, each with its time.
        held: videos that all actors together hold at a time.

    Raises:
        PipelineError: all videos were done before the steady state began.
    """
    since_ready = [(at, row) for at, row in rows if at > ready]
    warm = max(held, sum(at <= drained for at, _ in since_ready) if drained < float("inf") else 0)
    if len(since_ready) <= warm:
        raise PipelineError("all videos were done before the last actor was ready; raise --seconds")
    start = since_ready[warm - 1][0]
    return SteadyState([row for _, row in since_ready[warm:]], since_ready[-1][0] - start)


class Watch:
    """Receives the events of the driver (see `jobs.indexing.driver.Listener`) and records when they came.

    Each stored cache is deleted at once, so that the disk need not hold all of them.

    Args:
        store: the store that the job writes into.
    """

    def __init__(self, store: Store) -> None:
        self._ready = self._drained = float("inf")
        self._rows: list[tuple[float, CatalogRow]] = []
        self._store = store
        self._deleting = ThreadPoolExecutor(4)  # deleting gigabytes would hold up the driver

    def tick(self, pipeline: Pipeline) -> None:
        """Record when all actors were ready, and when they had used up what was decoded ahead."""
        if all(pipeline.ready_s) and self._ready == float("inf"):
            self._ready = time.monotonic() - min(pipeline.ready_s)
        waits = pipeline.places["decoded"] == 0 < pipeline.places["queue"]
        if waits and self._ready < self._drained == float("inf"):
            self._drained = time.monotonic()

    def decoded(self, ref: VideoRef, frames: int) -> None:
        """Do nothing."""

    def is_stored(self, ref: VideoRef) -> bool:
        """Return False, because no other job writes into this store."""
        return False

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        """Record the row and delete its cache."""
        self._rows.append((time.monotonic(), row))
        self._deleting.submit(self._delete, row.identity)

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        """End the benchmark."""
        raise PipelineError(f"{ref.uri}: {code}: {message}")

    def close(self) -> None:
        """Wait until everything is deleted."""
        self._deleting.shutdown()

    def steady_state(self, held: int) -> SteadyState:
        """The steady state of the run, which must be over.

        Args:
            held: videos that all actors together hold at a time.

        Raises:
            PipelineError: all videos were done before it began.
        """
        return steady_state(self._ready, self._drained, self._rows, held)

    def _delete(self, identity: str) -> None:
        self._store.storage.delete(self._store.manifest(identity).kv.key)
