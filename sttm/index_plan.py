"""What indexing a corpus has to do, found by comparing the corpus with the catalog of a store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from sttm.corpus.listing import VideoRef
from sttm.store.catalog.reader import Reader
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, recipe_digest, source_key, source_key_of
from sttm.store.store import Store


@dataclass(frozen=True)
class Plan:
    """What a run has to do with each video of a corpus.

    Attributes:
        todo: videos to index.
        stored: how many are in the store already.
        failed_before: catalog rows of the videos that failed in an earlier run and are left alone now.
        catalog_version: the version of the catalog that the corpus was compared with.
    """

    todo: list[VideoRef]
    stored: int = 0
    failed_before: tuple[CatalogRow, ...] = ()
    catalog_version: int = 0

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


def make_plan(refs: Iterable[VideoRef], recipe: Recipe, store: Store | None, retry_errors: bool) -> Plan:
    """Compare a corpus with a store. Reads no video and writes nothing.

    Of the catalog, only the keys are held in memory, and of the corpus what is to be done.

    Args:
        refs: the videos of the corpus.
        recipe: what they are to be indexed with.
        store: the store; None if there is none yet.
        retry_errors: whether videos that failed in an earlier run are to be tried again.
    """
    digest = recipe_digest(recipe)
    if store is None:
        return Plan(list(refs))
    reader = store.catalog.reader()
    stored, failed = _known_keys(reader, digest)
    todo, failed_before, count = [], [], 0
    for ref in refs:
        key = source_key_of(ref.uri, ref.size_bytes or 0, ref.version, digest)
        if key in stored:
            count += 1
        elif key in failed and not retry_errors:
            failed_before.append((key, ref.uri))
        else:
            todo.append(ref)
    return Plan(todo, count, _error_rows(reader, failed_before), reader.snapshot.version)


def _known_keys(reader: Reader, digest: str) -> tuple[set[str], set[str]]:
    """Source keys of the videos that are stored under a recipe, and of those that failed."""
    stored: set[str] = set()
    failed: set[str] = set()
    for table in reader.counting(()):
        keys, of_recipe = table["source_key"], pc.equal(table["recipe_digest"], digest)
        stored.update(keys.filter(pc.and_(of_recipe, pc.equal(table["status"], "ok"))).to_pylist())
        is_error = pc.and_(of_recipe, pc.equal(table["status"], "error"))
        # A video that was lost to an outage is tried again: the outage says nothing about the video.
        failed.update(keys.filter(pc.and_(is_error, pc.not_equal(table["error_code"], "lost"))).to_pylist())
    return stored, failed


def _error_rows(reader: Reader, keys_and_uris: Sequence[tuple[str, str]]) -> tuple[CatalogRow, ...]:
    """The error row of each of these source keys."""
    history = reader.history_of(uri for _, uri in keys_and_uris) if keys_and_uris else []
    rows = {row.source_key: row for row in history if row.status == "error"}
    return tuple(rows[key] for key, _ in keys_and_uris)
