"""Which rows of a catalog's history count, what the others were superseded by, and which can be forgotten."""

from collections.abc import Iterable
from dataclasses import dataclass

from sttm.store.catalog.row import CatalogRow

UNSEEN = ("missing", "unreadable", "lost")  # codes of errors that say nothing of the video


@dataclass(frozen=True)
class Superseded:
    """A row whose artifact stands for its video no more.

    Attributes:
        row: of the artifact.
        by: of the same video, newer: another artifact, an error of a changed file, or `removed`.
    """

    row: CatalogRow
    by: CatalogRow


def split_history(history: Iterable[CatalogRow]) -> tuple[list[CatalogRow], list[Superseded]]:
    """The row that counts of each video and recipe, and the superseded ones whose artifact no other row needs.

    The newest row of a video and recipe counts, with these exceptions. An error never hides an artifact of the very
    same file: of two runs at once, one may fail. Nor does it hide one whose file is gone: it may only be out of reach
    for a night, and nothing shows that the video has changed. And once a changed file is indexed under any recipe,
    artifacts of its earlier content count under none.

    Args:
        history: all rows, oldest first. Both results are in that order too.
    """
    newest: dict[tuple[str, str], CatalogRow] = {}
    superseded: list[Superseded] = []
    for row in history:
        old = newest.get((row.video_id, row.recipe_digest))
        is_ours = old is not None and old.status == "ok"
        is_same_file = old is not None and old.source_key == row.source_key
        if is_ours and row.status == "error" and (is_same_file or row.error_code in UNSEEN):
            continue
        if old and is_ours and (row.status, row.identity) != ("ok", old.identity):
            superseded.append(Superseded(old, row))
        newest.pop((row.video_id, row.recipe_digest), None)
        newest[row.video_id, row.recipe_digest] = row
    latest = {row.video_id: row for row in newest.values() if row.status == "ok" and row.content_digest}
    counting = []
    for row in newest.values():
        by = latest.get(row.video_id)
        if by and row.status == "ok" and row.content_digest not in ("", by.content_digest):
            superseded.append(Superseded(row, by))
        elif row.status != "removed":
            counting.append(row)
    needed = {row.identity for row in counting}
    last = {(s.row.video_id, s.row.identity): s for s in superseded if s.row.identity not in needed}
    return counting, sorted(last.values(), key=lambda s: s.row.created_at)


def without_repeats(history: Iterable[CatalogRow]) -> list[CatalogRow]:
    """All rows but those whose video and recipe have the same said of them in the row before and in the row after.

    So every answer of `split_history` stays, and would stay if further rows arrived late, dated in between.

    Args:
        history: all rows, oldest first; so is the result.
    """
    rows = list(history)
    both = zip(_repeats(rows), reversed(_repeats(rows[::-1])), strict=True)
    return [row for row, repeats in zip(rows, both, strict=True) if not all(repeats)]


def _repeats(rows: list[CatalogRow]) -> list[bool]:
    """For each row, whether the last one before it of its video and recipe says the same."""
    last: dict[tuple[str, str], tuple[str, ...]] = {}
    found = []
    for row in rows:
        key = (row.video_id, row.recipe_digest)
        said = (row.status, row.source_key, row.identity, row.content_digest, row.error_code)
        found.append(last.get(key) == said)
        last[key] = said
    return found
