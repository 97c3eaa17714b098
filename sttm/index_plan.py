"""What indexing a corpus has to do, found by comparing the corpus with the catalog of a store."""

from dataclasses import dataclass

from sttm.corpus.listing import VideoRef
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, recipe_digest, source_key
from sttm.store.store import Store


@dataclass(frozen=True)
class Plan:
    """What a run has to do with each video of a corpus.

    Attributes:
        todo: videos to index.
        stored: how many are in the store already.
        failed_before: catalog rows of the videos that failed in an earlier run and are left alone now.
    """

    todo: list[VideoRef]
    stored: int = 0
    failed_before: tuple[CatalogRow, ...] = ()

    @property
    def videos(self) -> int:
        """How many videos the corpus has."""
        return len(self.todo) + self.stored + len(self.failed_before)

    def __str__(self) -> str:
        retry = " (--retry-errors tries them again)" if self.failed_before else ""
        return (
            f"{self.videos} videos: {len(self.todo)} to index, {self.stored} stored already, "
            f"{len(self.failed_before)} failed before{retry}"
        )


def key_of(ref: VideoRef, recipe: Recipe) -> str:
    """The source key of a listed video under a recipe; a file of unknown size counts as a file of size 0."""
    return source_key(ref.uri, ref.size_bytes or 0, ref.version, recipe)


def error_row(ref: VideoRef, recipe: Recipe, run_id: str, code: str, message: str) -> CatalogRow:
    """The catalog row of a video that cannot be indexed."""
    return CatalogRow(
        video_id=ref.video_id,
        uri=ref.uri,
        name=ref.name,
        status="error",
        recipe_digest=recipe_digest(recipe),
        source_key=key_of(ref, recipe),
        error_code=code,
        error_message=message,
        run_id=run_id,
    )


def make_plan(refs: list[VideoRef], recipe: Recipe, store: Store | None, retry_errors: bool) -> Plan:
    """Compare a corpus with a store. Reads no video and writes nothing.

    Args:
        refs: the videos of the corpus.
        recipe: what they are to be indexed with.
        store: the store; None if there is none yet.
        retry_errors: whether videos that failed in an earlier run are to be tried again.
    """
    rows = store.catalog.rows() if store else []
    # A video that was lost to an outage is tried again: the outage says nothing about the video.
    known = {row.source_key: row for row in rows if row.error_code != "lost"}
    todo, failed_before, stored = [], [], 0
    for ref in refs:
        row = known.get(key_of(ref, recipe))
        if row is not None and row.status == "ok":
            stored += 1
        elif row is not None and row.status == "error" and not retry_errors:
            failed_before.append(row)
        else:
            todo.append(ref)
    return Plan(todo, stored, tuple(failed_before))
