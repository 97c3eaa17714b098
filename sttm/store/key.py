"""Identity of an artifact: it follows from the video's content and from the recipe, which is all else that shaped it.

A *recipe* is a plain JSON object of named sections (model, video, merge, prefill, store, …). Two artifacts have the
same identity exactly if their recipes and the contents of their videos are the same.
"""

import hashlib
import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

FORMAT_VERSION = 1
ABSENT = "(absent)"

Recipe = dict[str, Any]


class Difference(NamedTuple):
    """One value in which two recipes differ.

    Attributes:
        path: place of the value, such as `merge.budget`.
        left, right: the value in either recipe; `ABSENT` where a recipe has none.
    """

    path: str
    left: Any
    right: Any


def make_recipe(**sections: Mapping[str, Any]) -> Recipe:
    """Make a recipe of named sections and the store's format version.

    Raises:
        ValueError: a value has no exact JSON form (a NaN, a tensor, a key that is not text).
    """
    recipe = {"format_version": FORMAT_VERSION, **sections}
    return dict(json.loads(canonical_json(recipe)))


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, ASCII. A tuple is written as a list.

    Raises:
        ValueError: a value has no exact JSON form.
    """
    _require_plain(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def recipe_digest(recipe: Recipe) -> str:
    """The sha256 of a recipe, 64 hex digits.

    Raises:
        ValueError: it was not built with `make_recipe`.
    """
    if "format_version" not in recipe:
        raise ValueError("a recipe needs its format_version; build it with make_recipe")
    return hashlib.sha256(canonical_json(recipe)).hexdigest()


def identity(recipe: Recipe, content_digest: str) -> str:
    """The identity of the artifact that a recipe makes of a video with this content digest, 64 hex digits."""
    return hashlib.sha256(canonical_json(["identity", recipe_digest(recipe), content_digest])).hexdigest()


def source_key(uri: str, size_bytes: int, version: str, recipe: Recipe) -> str:
    """A digest of "this recipe applied to this file", known without reading the file; 64 hex digits.

    Args:
        uri: absolute URI of the video file.
        size_bytes: size of the file.
        version: ETag or modification time of the file, as text.
        recipe: the recipe.
    """
    return source_key_of(uri, size_bytes, version, recipe_digest(recipe))


def source_key_of(uri: str, size_bytes: int, version: str, digest: str) -> str:
    """The source key under a recipe whose digest is known already, for many files.

    Args:
        uri: absolute URI of the video file.
        size_bytes: size of the file.
        version: ETag or modification time of the file, as text.
        digest: sha256 of the recipe.
    """
    # The canonical JSON of a list, written out: of millions of files, an encoder takes twice as long.
    quoted = encode_basestring_ascii
    text = f'["source",{quoted(uri)},{size_bytes},{quoted(version)},{quoted(digest)}]'
    return hashlib.sha256(text.encode()).hexdigest()


def differences(left: Any, right: Any, path: str = "") -> list[Difference]:
    """Every value in which two recipes differ, such as `[Difference("merge.budget", 0.3, 0.5)]`.

    Args:
        left, right: the two recipes, or values inside them.
        path: place of these values in their recipes.
    """
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
