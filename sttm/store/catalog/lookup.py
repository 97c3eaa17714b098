"""Finding the rows of one video among given rows, by its id, URI or file name."""

import difflib
from collections.abc import Sequence

from sttm.errors import StoreError
from sttm.store.catalog.row import CatalogRow


def find_row(text: str, rows: Sequence[CatalogRow], place: str, recipe_digest: str | None = None) -> CatalogRow:
    """The newest usable row of the video that a text names.

    Args:
        text: id, URI or file name of the video.
        rows: the rows to look through, oldest first.
        place: name of the store for messages.
        recipe_digest: look only at rows of this recipe; None looks at all.

    Raises:
        StoreError: the text names no video or several, the video was not indexed with this recipe, or indexing it
            failed.
    """
    of_recipe = [row for row in rows if recipe_digest in (None, row.recipe_digest)]
    if recipe_digest and not named(text, of_recipe) and (others := named(text, rows)):
        recipes = sorted({row.recipe_digest[:12] for row in others})
        raise StoreError(
            f"no video {text[:200]!r} with recipe {recipe_digest[:12]} in {place}; it has the video with recipe "
            + " and ".join(recipes)
        )
    found = rows_of(text, of_recipe, place)
    usable = [row for row in found if row.status == "ok"]
    if not usable:
        error = found[-1]
        raise StoreError(f"indexing {text!r} failed: {error.error_code}: {error.error_message}; index it again")
    return usable[-1]


def rows_of(text: str, rows: Sequence[CatalogRow], place: str) -> list[CatalogRow]:
    """The rows of the one video whose id is the text; where no id is, whose URI is; where no URI is, whose name is.

    Args:
        text: id, URI or file name of the video.
        rows: the rows to look through.
        place: name of the store for messages.

    Raises:
        StoreError: the text names no video or several; the message says which there are.
    """
    found = named(text, rows)
    if not found:
        raise StoreError(f"no video {text[:200]!r} in {place}; {_near(text, rows)}")
    videos = sorted({row.video_id for row in found})
    if len(videos) > 1:
        raise StoreError(f"{text!r} is the name of {len(videos)} videos; use one of their ids: {', '.join(videos[:8])}")
    return found


def named(text: str, rows: Sequence[CatalogRow]) -> list[CatalogRow]:
    """The rows whose id is the text; where no id is, whose URI is; where no URI is, whose name is; maybe none."""
    by_key = ([row for row in rows if getattr(row, key) == text] for key in ("video_id", "uri", "name"))
    return next(filter(None, by_key), [])


def _near(text: str, rows: Sequence[CatalogRow]) -> str:
    known = {key for row in rows for key in (row.video_id, row.name)}
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(rows)} videos"
