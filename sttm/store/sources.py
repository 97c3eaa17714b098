"""Whether the video files that a store's artifacts were made of are still there."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from sttm.corpus.listing import look_again
from sttm.errors import CorpusError
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, source_key
from sttm.store.store import Store
from sttm.urls import is_http, is_local, open_filesystem

SourceState = Literal["there", "changed", "gone", "unreadable"]
_LOOKS_AT_ONCE = 16  # a look at a remote file takes tens of milliseconds
_HTTP_GONE = (404, 410)


@dataclass(frozen=True)
class Absence:
    """Why a file could not be looked at.

    Attributes:
        is_gone: whether the storage answered that exactly this file does not exist. False where the storage could not
            be asked, refused to answer, or has something else at this place: then the file may well be there.
        cause: the reason, for people, without credentials.
    """

    is_gone: bool
    cause: str


def absence(uri: str) -> Absence | None:
    """Why there is no file at a URI; None if there is one.

    Args:
        uri: path or URI of a file; wildcards are not expanded.
    """
    try:
        fs, path = open_filesystem(uri)
    except CorpusError as error:
        return Absence(False, str(error))
    except Exception as error:  # clients of object stores raise their own libraries' classes
        return _out_of_reach(error)
    try:
        kind = fs.info(path)["type"]
    except FileNotFoundError as error:
        return _not_found(fs, path, error)
    except Exception as error:
        return _out_of_reach(error)
    kinds = {"directory": "it is a folder"}
    return None if kind == "file" else Absence(False, kinds.get(kind, f"it is not a file but of type {kind!r}"))


def source_states(store: Store, rows: Sequence[CatalogRow]) -> list[SourceState]:
    """The state of each row's video file. Looks at every file once, and reads none.

    `there`: as it was when the row was made, as far as size and version tell. `changed`: another size or version; never
    said of an error row whose recipe no artifact has. `gone`: its storage says that it does not exist. `unreadable`:
    it cannot be looked at now.

    Args:
        store: the store.
        rows: catalog rows.
    """
    refs = {ref.uri: ref for ref in look_again(sorted({row.uri for row in rows}))}
    missing = [uri for uri, ref in refs.items() if ref.size_bytes is None]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        absences = dict(zip(missing, pool.map(absence, missing), strict=True))
    recipes: dict[str, Recipe] = {}
    for row in rows:
        if row.identity and row.recipe_digest not in recipes:
            recipes[row.recipe_digest] = store.manifest(row.identity).recipe
    states: list[SourceState] = []
    for row in rows:
        ref, recipe = refs[row.uri], recipes.get(row.recipe_digest)
        if ref.size_bytes is None:
            why = absences[row.uri]
            states.append("gone" if why and why.is_gone else "unreadable")
        elif recipe and source_key(ref.uri, ref.size_bytes, ref.version, recipe) != row.source_key:
            states.append("changed")
        else:
            states.append("there")
    return states


def _not_found(fs: Any, path: str, error: FileNotFoundError) -> Absence:
    """What "not found" means: only where the place above the file can be looked at, the file is gone."""
    if is_http(path):  # fsspec says "not found" whatever the server's fault is
        status = getattr(error.__cause__, "status", None)
        if status is None:
            return Absence(False, f"its server cannot be reached: {type(error.__cause__ or error).__name__}")
        return Absence(status in _HTTP_GONE, f"its server answers with status {status}")
    if is_local(fs):
        folder = os.path.dirname(path)
        if os.path.isdir(folder):
            return Absence(True, f"the folder {folder} has no such file")
        return Absence(False, f"there is no folder {folder}; is it mounted?")
    bucket = path.lstrip("/").split("/")[0]
    try:
        fs.info(bucket)
    except FileNotFoundError:
        return Absence(False, f"there is no bucket {bucket}")
    except Exception as failure:
        return _out_of_reach(failure)
    return Absence(True, f"bucket {bucket} has no such object")


def _out_of_reach(error: Exception) -> Absence:
    """The absence for an error that says nothing of the file; the error's own text may quote credentials."""
    if isinstance(error, PermissionError):
        return Absence(False, "it may not be looked at; check permissions or credentials")
    return Absence(False, f"its storage cannot be asked: {getattr(error, 'strerror', None) or type(error).__name__}")
