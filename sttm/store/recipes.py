"""The recipes of a store: several can lie in one, and people tell them apart and choose one by a short name."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from sttm.errors import ArtifactError, StoreError
from sttm.store.artifact import Manifest
from sttm.store.catalog.lookup import NamedRows
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store

SHORT_NAME_DIGITS = 12
_SHOWN = 8  # recipes named in one error message


@dataclass(frozen=True)
class StoredRecipe:
    """A recipe that usable artifacts of a store were made with, described for people.

    A setting is None where the recipe does not record it, or where no manifest of the recipe can be read.

    Attributes:
        digest: sha256 of the recipe, 64 hex digits.
        model: folder, repository id or built-in name of the model, as the indexing run recorded it.
        fps: frames sampled per second of video.
        max_frames: most frames sampled of one video.
        method: merge method, such as `sttm`.
        budget: share of the visual tokens kept.
        tokens: most visual tokens kept of one video.
        spatial_threshold, temporal_threshold: cosines above which tokens merge, where no budget chooses them.
        merge_layer: decoder layer before which tokens are merged.
        kv_scheme: KV scheme of the layers from `merge_layer` on.
        kv_scheme_below: KV scheme of the layers below `merge_layer`; None if it is the same.
        created_at: when the newest artifact was made; UTC, ISO 8601.
        videos: number of videos with a usable artifact of this recipe; None where nobody counted them.
        size_bytes: size of these artifacts' files; an artifact that several videos share counts once.
    """

    digest: str
    model: str | None
    fps: float | None
    max_frames: int | None
    method: str | None
    budget: float | None
    tokens: int | None
    spatial_threshold: float | None
    temporal_threshold: float | None
    merge_layer: int | None
    kv_scheme: str | None
    kv_scheme_below: str | None
    created_at: str
    videos: int | None = None
    size_bytes: int | None = None

    @property
    def name(self) -> str:
        """The short name that commands show and accept: the first 12 hex digits of the digest."""
        return self.digest[:SHORT_NAME_DIGITS]

    @property
    def model_name(self) -> str:
        """The model without the folders before its name: `/models/llava` is shown as `llava`."""
        return PurePath(self.model).name if self.model else "unknown model"

    @property
    def kept(self) -> str:
        """How many visual tokens the merge keeps: `30 %`, `tome 50 %`, `spatial 0.8, temporal 0.75`, `all tokens`."""
        kept = [] if self.budget is None else [f"{self.budget * 100:g} %"]
        kept += [] if self.tokens is None else [f"at most {self.tokens} tokens"]
        thresholds = {"spatial": self.spatial_threshold, "temporal": self.temporal_threshold}
        kept += [f"{axis} {threshold:g}" for axis, threshold in thresholds.items() if threshold is not None]
        method = f"{self.method} " if self.method not in (None, "sttm", "none") else ""
        return method + (", ".join(kept) or "all tokens")

    @property
    def scheme(self) -> str:
        """The KV scheme: `int8`, or `int8, exact below the merge` where the layers below differ."""
        below = f", {self.kv_scheme_below} below the merge" if self.kv_scheme_below else ""
        return (self.kv_scheme or "unknown scheme") + below

    def __str__(self) -> str:
        """For example `16 frames, 30 %, int8, tiny`."""
        frames = [] if self.max_frames is None else [f"{self.max_frames} frames"]
        return ", ".join([*frames, self.kept, self.scheme, self.model_name])


@dataclass(frozen=True)
class ChosenRecipe:
    """The recipe whose artifacts a command will use.

    Attributes:
        recipe: the recipe.
        others: further recipes that could have been chosen, newest first.
        was_named: whether the user named the recipe; otherwise the newest was taken.
        video: the video whose recipes were chosen from; None if these were all recipes of the store.
    """

    recipe: StoredRecipe
    others: tuple[StoredRecipe, ...]
    was_named: bool
    video: str | None = None

    @property
    def digest(self) -> str:
        """sha256 of the recipe, for `Store.find`."""
        return self.recipe.digest

    @property
    def notice(self) -> str | None:
        """One line for the user, where the choice was made for them among several recipes; else None."""
        if self.was_named or not self.others:
            return None
        place = "in this store" if self.video is None else f"of {self.video}"
        return (
            f"{1 + len(self.others)} recipes {place}: taking the newest, {self.recipe.name} ({self.recipe}); "
            "choose another with --recipe"
        )


def stored_recipes(store: Store, rows: list[CatalogRow] | None = None) -> list[StoredRecipe]:
    """The recipes of a store's usable artifacts with their videos counted, newest first; reads the whole catalog.

    Args:
        store: the store.
        rows: counting catalog rows to look at, the newest last; None reads the store's own.
    """
    usable = [row for row in (store.catalog.rows() if rows is None else rows) if row.status == "ok"]
    newest = dict.fromkeys(row.recipe_digest for row in reversed(usable))
    grouped: dict[str, list[CatalogRow]] = {digest: [] for digest in newest}
    for row in usable:
        grouped[row.recipe_digest].append(row)
    return [_counted(_described(store, of_recipe), of_recipe) for of_recipe in grouped.values()]


def choose_recipe(store: Store, prefix: str | None = None, video: str | None = None) -> ChosenRecipe:
    """The recipe that a prefix names, or the newest one.

    Args:
        store: the store.
        prefix: first hex digits of the recipe's digest, as many as tell it from the others; None takes the newest.
        video: id, URI or name of a video; only recipes that this video was indexed with are looked at. None: all.

    Raises:
        StoreError: the store holds no usable artifact, no recipe or several begin with the prefix, or the video is
            unknown, its name ambiguous, or indexing it failed.
    """
    reader, place = store.catalog.reader(), store.storage.url
    newest = reader.newest_usable()
    if not newest:
        raise StoreError(f"{place} holds no indexed video; index some into it first")
    if video is not None:
        candidates = reader.candidates(video)
        found = NamedRows(candidates, place, reader.suggestion).find(video)
        usable = [row for row in candidates if row.status == "ok" and row.video_id == found.video_id]
        of_video = {row.recipe_digest: row for row in usable}
        has_all = of_video.keys() == newest.keys()
        place, video = f"{place} for {video}", None if has_all else video
        newest = {digest: of_video[digest] for digest in newest if digest in of_video}
    recipes = [_described(store, [row]) for row in reversed(newest.values())]
    if prefix is None:
        return ChosenRecipe(recipes[0], tuple(recipes[1:]), False, video)
    fitting = [recipe for recipe in recipes if prefix and recipe.digest.startswith(prefix.lower())]
    if not fitting:
        raise StoreError(f"no recipe {prefix[:80]!r} in {place}; it has {_listed(recipes)}")
    if len(fitting) > 1:
        raise StoreError(f"{prefix!r} is the beginning of {len(fitting)} recipes in {place}: {_listed(fitting)}")
    others = tuple(recipe for recipe in recipes if recipe != fitting[0])
    return ChosenRecipe(fitting[0], others, True, video)


def _listed(recipes: list[StoredRecipe]) -> str:
    shown = [f"{recipe.name} ({recipe})" for recipe in recipes[:_SHOWN]]
    more = [f"{len(recipes) - _SHOWN} more"] if len(recipes) > _SHOWN else []
    return "; ".join(shown + more)


def _counted(recipe: StoredRecipe, rows: list[CatalogRow]) -> StoredRecipe:
    """The recipe with the numbers of all its usable rows."""
    sizes = {row.identity: row.kv_bytes + row.tokens_bytes for row in rows}
    return replace(recipe, videos=len({row.video_id for row in rows}), size_bytes=sum(sizes.values()))


def _described(store: Store, rows: list[CatalogRow]) -> StoredRecipe:
    """The description of one recipe by some of its usable rows, the newest last; nothing is counted."""
    manifest = _a_manifest(store, rows)
    recipe = manifest.recipe if manifest else {}
    video, merge, prefill, stored = (_section(recipe, name) for name in ("video", "merge", "prefill", "store"))
    model = manifest.facts.provenance.model if manifest else ""
    return StoredRecipe(
        digest=rows[-1].recipe_digest,
        model=model or _section(recipe, "model").get("id"),
        fps=video.get("fps"),
        max_frames=video.get("max_frames"),
        method=merge.get("method"),
        budget=merge.get("budget"),
        tokens=merge.get("tokens"),
        spatial_threshold=merge.get("spatial_threshold"),
        temporal_threshold=merge.get("temporal_threshold"),
        merge_layer=prefill.get("merge_layer"),
        kv_scheme=stored.get("kv_scheme"),
        kv_scheme_below=stored.get("kv_scheme_below"),
        created_at=rows[-1].created_at,
    )


def _a_manifest(store: Store, rows: list[CatalogRow]) -> Manifest | None:
    """The newest manifest that is neither damaged nor gone; None if all are."""
    for row in reversed(rows):
        with suppress(ArtifactError, MissingObjectError):
            return store.manifest(row.identity)
    return None


def _section(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}
