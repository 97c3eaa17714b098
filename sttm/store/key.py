"""What an artifact is called: its identity follows from the video's content and from everything that shaped the bytes.

A *recipe* is a plain JSON object of named sections (model, preprocess, merge, prefill, store, …). Two artifacts have
the same identity exactly if their recipes and video contents are the same, so a hit is never a guess.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

FORMAT_VERSION = 1
ABSENT = "(absent)"

Recipe = dict[str, Any]


class Difference(NamedTuple):
    """One leaf in which two recipes differ; a side that lacks it reads `ABSENT`."""

    path: str
    left: Any
    right: Any


def make_recipe(**sections: Mapping[str, Any]) -> Recipe:
    """A recipe of these sections and the store's format version, checked to be plain JSON.

    Raises:
        ValueError: a value has no exact JSON form (a NaN, a tensor, a key that is not text).
    """
    recipe = {"format_version": FORMAT_VERSION, **sections}
    return dict(json.loads(canonical_json(recipe)))


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, ASCII. Tuples count as lists."""
    _require_plain(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def recipe_digest(recipe: Recipe) -> str:
    """sha256 of a recipe, 64 hex digits."""
    if "format_version" not in recipe:
        raise ValueError("a recipe needs its format_version; build it with make_recipe")
    return hashlib.sha256(canonical_json(recipe)).hexdigest()


def identity(recipe: Recipe, content_digest: str) -> str:
    """Name of the artifact that this recipe makes of a video with this content digest, 64 hex digits."""
    return hashlib.sha256(canonical_json(["identity", recipe_digest(recipe), content_digest])).hexdigest()


def source_key(uri: str, size_bytes: int, version: str, recipe: Recipe) -> str:
    """Name of "this recipe applied to this file", known without reading the file.

    Args:
        uri: where the video is.
        size_bytes: its size.
        version: its ETag or modification time, as text.
        recipe: as for `identity`.
    """
    return hashlib.sha256(canonical_json(["source", uri, size_bytes, version, recipe_digest(recipe)])).hexdigest()


def differences(left: Any, right: Any, path: str = "") -> list[Difference]:
    """Every leaf in which two recipes differ, by path: `[Difference("merge.budget", 0.3, 0.5)]`."""
    if isinstance(left, dict) and isinstance(right, dict):
        found = []
        for key in sorted({*left, *right}):
            inner = f"{path}.{key}" if path else key
            found += differences(left.get(key, ABSENT), right.get(key, ABSENT), inner)
        return found
    same = canonical_json(left) == canonical_json(right)
    return [] if same else [Difference(path, left, right)]


def _require_plain(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"key {key!r} in {path or 'the top level'} is not text")
            _require_plain(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _require_plain(inner, f"{path}[{position}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise ValueError(f"{path or 'value'} is a {type(value).__name__}, which has no exact JSON form")
