"""Finding the rows of one video among given rows, by its id, URI or file name."""

import difflib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from sttm.errors import StoreError
from sttm.store.catalog.row import CatalogRow
from sttm.urls import absolute_uri, is_http, redact_url, respelled

_SHOWN_IDS = 8


class UnknownVideoError(StoreError):
    """The store can be read, but a text names no usable video in it, or several."""


class NamedRows:
    """Rows to look videos up in by their names, each without a look at the others.

    Args:
        rows: the counting rows, in the order in which they were added.
        place: name of the store for messages.
        suggestion: what to say about a text that names nothing, such as "did you mean 'a'?".
    """

    def __init__(self, rows: Iterable[CatalogRow], place: str, suggestion: Callable[[str], str] | None = None) -> None:
        self._place, self._suggestion = place, suggestion
        self._exact: dict[str, list[CatalogRow]] = {}
        self._respelled: dict[str, list[CatalogRow]] = {}
        for row in rows:
            for text in {row.video_id, row.uri, row.name}:
                self._exact.setdefault(text, []).append(row)
            for text in stored_spellings(row.uri, row.name):
                self._respelled.setdefault(text, []).append(row)

    def named(self, text: str, recipe_digest: str | None = None) -> list[CatalogRow]:
        """The rows whose id is the text; where no id is, whose URI is; where no URI is, whose name is; maybe none.

        Where none of them is exactly the text, another spelling of it finds the rows: another Unicode normal form, a
        local path, a `file://` URI with percent escapes, or a web address as messages show it, without its query.

        Args:
            text: id, URI or file name of the video.
            recipe_digest: look only at rows of this recipe; None looks at all.
        """
        exact = [row for row in self._exact.get(text, ()) if recipe_digest in (None, row.recipe_digest)]
        by_key = ([row for row in exact if getattr(row, key) == text] for key in ("video_id", "uri", "name"))
        found: list[CatalogRow] = next(filter(None, by_key), [])
        if found:
            return found
        spelt = chain.from_iterable(self._respelled.get(spelling, ()) for spelling in spellings_asked(text))
        return list({id(row): row for row in spelt if recipe_digest in (None, row.recipe_digest)}.values())

    def rows_of(self, text: str) -> list[CatalogRow]:
        """The rows of the one video that a text names.

        Raises:
            UnknownVideoError: the text names no video or several; the message says which there are.
        """
        return self._of_one(text, self.named(text))

    def find(self, text: str, recipe_digest: str | None = None) -> CatalogRow:
        """The newest usable row of the video that a text names.

        Args:
            text: id, URI or file name of the video.
            recipe_digest: look only at rows of this recipe; None looks at all.

        Raises:
            UnknownVideoError: the text names no video or several, the video was not indexed with this recipe, or
                indexing it failed.
        """
        found = self.named(text, recipe_digest)
        if recipe_digest and not found and (others := self.named(text)):
            recipes = sorted({row.recipe_digest[:12] for row in others})
            raise UnknownVideoError(
                f"no video {text[:200]!r} with recipe {recipe_digest[:12]} in {self._place}; it has the video "
                "with recipe " + " and ".join(recipes)
            )
        found = self._of_one(text, found)
        usable = [row for row in found if row.status == "ok"]
        if not usable:
            error = found[-1]
            raise UnknownVideoError(
                f"indexing {text!r} failed: {error.error_code}: {error.error_message}; index it again"
            )
        return usable[-1]

    def _of_one(self, text: str, found: list[CatalogRow]) -> list[CatalogRow]:
        if not found:
            suggestion = f"; {self._suggestion(text)}" if self._suggestion else ""
            raise UnknownVideoError(f"no video {text[:200]!r} in {self._place}{suggestion}")
        videos = sorted({row.video_id for row in found})
        if len(videos) > 1:
            ids = ", ".join(videos[:_SHOWN_IDS])
            raise UnknownVideoError(f"{text!r} is the name of {len(videos)} videos; use one of their ids: {ids}")
        return found


def stored_spellings(uri: str, name: str) -> set[str]:
    """The texts that name a video of this URI and name where no id, URI or name is exactly the text asked for."""
    uri = redact_url(uri) if is_http(uri) else uri
    return {unicodedata.normalize("NFC", text) for text in (uri, name)}


def spellings_asked(text: str) -> set[str]:
    """What to look for among `stored_spellings`, for a text that no id, URI or name is exactly."""
    spellings = {text}
    if text.startswith(("/", "file:")) or "://" in text:
        spellings |= {absolute_uri(other) for other in (text, *chain.from_iterable(respelled(text)))}
    return {unicodedata.normalize("NFC", spelling) for spelling in spellings}


def near(text: str, names: Sequence[str]) -> str:
    """A question that names the texts most like a text, such as "did you mean 'a' or 'b'?"; empty if none is."""
    found = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, found))}?" if found else ""
