"""Finding the rows of one video among given rows, by its id, URI or file name."""

import difflib
import unicodedata
from collections.abc import Sequence
from itertools import chain

from sttm.errors import StoreError
from sttm.store.catalog.row import CatalogRow
from sttm.urls import absolute_uri, is_http, redact_url, respelled


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
    """The rows of the one video that a text names, as `named` finds them.

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
    """The rows whose id is the text; where no id is, whose URI is; where no URI is, whose name is; maybe none.

    Where none of them is exactly the text, another spelling of it finds the rows: another Unicode normal form, a local
    path, a `file://` URI with percent escapes, or a web address as messages show it, without its query.
    """
    by_key = ([row for row in rows if getattr(row, key) == text] for key in ("video_id", "uri", "name"))
    found: list[CatalogRow] = next(filter(None, by_key), [])
    if found:
        return found
    wanted = spellings_asked(text)
    return [row for row in rows if not wanted.isdisjoint(spellings_stored(row))]


def spellings_stored(row: CatalogRow) -> set[str]:
    """The texts that name a row's video where no id, URI or name is exactly the text asked for."""
    uri = redact_url(row.uri) if is_http(row.uri) else row.uri
    return {unicodedata.normalize("NFC", text) for text in (uri, row.name)}


def spellings_asked(text: str) -> set[str]:
    """What to look for among `spellings_stored`, for a text that no id, URI or name is exactly."""
    spellings = {text}
    if text.startswith(("/", "file:")) or "://" in text:
        spellings |= {absolute_uri(other) for other in (text, *chain.from_iterable(respelled(text)))}
    return {unicodedata.normalize("NFC", spelling) for spelling in spellings}


def _near(text: str, rows: Sequence[CatalogRow]) -> str:
    known = {key for row in rows for key in (row.video_id, row.name)}
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(rows)} videos"
