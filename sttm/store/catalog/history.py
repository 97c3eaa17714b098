"""Which rows of a catalog's history count, which were superseded and by what, and which can be dropped."""

from collections.abc import Iterable
from dataclasses import dataclass

from sttm.store.catalog.row import CatalogRow

UNSEEN = ("missing", "unreadable", "lost")  # error codes that say nothing about the content of a video


@dataclass(frozen=True)
class Superseded:
    """A row whose artifact was replaced.

    Attributes:
        row: the row of the artifact.
        by: the newer row of the same video: another artifact, an error of a changed file, or a removal.
    """

    row: CatalogRow
    by: CatalogRow


def split_history(history: Iterable[CatalogRow]) -> tuple[list[CatalogRow], list[Superseded]]:
    """Find the row that counts of each video and recipe, and the superseded rows whose artifact no other row needs.

    Args:
        history: all rows of the videos, in the order in which they were added. An artifact that a video outside the
            history has in common with one of them is unknown here.

    Returns:
        The counting rows and the superseded ones, both in the order of the history.
    """
    counting, superseded = judge(history)
    needed = {row.identity for row in counting}
    return counting, [s for s in superseded if s.row.identity not in needed]


def judge(history: Iterable[CatalogRow]) -> tuple[list[CatalogRow], list[Superseded]]:
    """Find the row that counts of each video and recipe, and the superseded rows, whoever needs their artifacts.

    The last row of a video and recipe counts, with these exceptions:
    - An error does not hide an artifact of the very same file, because of two runs at once one may fail.
    - An error with a code in `UNSEEN` does not hide an artifact either: the file may only be out of reach for a night,
      and nothing shows that the video has changed.
    - Once a changed file is indexed under any recipe, artifacts of its earlier content count under none.

    Args:
        history: all rows of the videos, in the order in which they were added.

    Returns:
        The counting rows and the superseded ones, both in the order of the history.
    """
    rows = list(history)
    place = {id(row): number for number, row in enumerate(rows)}
    newest: dict[tuple[str, str], CatalogRow] = {}
    superseded: list[Superseded] = []
    for row in rows:
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
    last = {(s.row.video_id, s.row.identity): s for s in superseded}
    return counting, sorted(last.values(), key=lambda s: place[id(s.row)])


def without_repeats(history: Iterable[CatalogRow]) -> list[CatalogRow]:
    """Drop a row when the previous and the next row of the same video and recipe record the same thing.

    The results of `split_history` stay the same, also if further rows are added, at either end.

    Args:
        history: all rows of some videos, in the order in which they were added.

    Returns:
        The remaining rows, in this order.
    """
    rows = list(history)
    both = zip(_repeats(rows), reversed(_repeats(rows[::-1])), strict=True)
    return [row for row, repeats in zip(rows, both, strict=True) if not all(repeats)]


def _repeats(rows: list[CatalogRow]) -> list[bool]:
    """For each row, whether the previous row of the same video and recipe records the same thing."""
    last: dict[tuple[str, str], tuple[str, ...]] = {}
    found = []
    for row in rows:
        key = (row.video_id, row.recipe_digest)
        said = (row.status, row.source_key, row.identity, row.content_digest, row.error_code)
        found.append(last.get(key) == said)
        last[key] = said
    return found
