"""Why a video is, or is not, in a store under these settings.

    python -m jobs.explain clips/a.mp4 --store URL --config configs/tiny.yaml

Reads the file (to know its content digest), names the identity it would have, and compares the recipe with those of
what the store holds of this video, field by field. A file that is gone is looked up by its id, URI or name. Exit code
0 if it is a hit, 1 if not.
"""

import json
from typing import Annotated

import typer

from jobs.command import EXIT_ERROR, run
from jobs.config import JobConfig
from sttm.config import index_recipe, load_config
from sttm.corpus import VideoRef, list_corpus
from sttm.errors import CorpusError
from sttm.models.checkpoint import Checkpoint
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, differences, identity, recipe_digest
from sttm.store.maintenance import superseded
from sttm.store.store import Store
from sttm.urls import absolute_uri, redact_url
from sttm.video.file import read_video_file


def explain(
    video: Annotated[str, typer.Argument(help="path or URI of a video file")],
    store: Annotated[str, typer.Option(help="URL of the store")],
    config: Annotated[str, typer.Option(help="YAML settings")] = "configs/tiny.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, such as merge.budget=0.5")] = None,
) -> int:
    """Say whether a store has a video under these settings, and if not, what differs."""
    settings = load_config(JobConfig, config, set_)
    recipe = index_recipe(settings.index, Checkpoint.open(settings.model))
    opened = Store.open(store)
    try:
        refs = list_corpus(video)
    except CorpusError:
        if rows := _rows_of(opened, video, absolute_uri(video)):
            return _explain_gone(rows, recipe)
        raise
    if len(refs) != 1:
        raise CorpusError(f"{video} names {len(refs)} videos; explain takes one")
    _, digest = read_video_file(refs[0].uri, settings.video.max_source_bytes)
    name = identity(recipe, digest)
    print(
        f"video     {redact_url(refs[0].uri)}\ncontent   {digest}\nrecipe    {recipe_digest(recipe)}\nidentity  {name}"
    )
    for old in superseded(opened):
        if old.row.uri == refs[0].uri:
            by = old.by.identity[:12] or f"an error, {old.by.error_code}"
            print(f"superseded: {old.row.identity[:12]} of {old.row.created_at}, by {by} of {old.by.created_at}")
    if opened.has(name):
        manifest = opened.manifest(name)
        print(
            f"hit: indexed {manifest.created_at} from {redact_url(manifest.source.uri)} by run {manifest.facts.run_id}"
        )
        return 0
    rows = _rows_of(opened, refs[0].uri, refs[0].name)
    if not rows:
        print("miss: the store holds nothing of this file or of one with its name")
    for row in rows:
        print(f"miss: {_difference(opened, row, recipe, refs[0], digest)}")
    return EXIT_ERROR


def _rows_of(store: Store, *names: str) -> list[CatalogRow]:
    """Rows of videos with one of these ids, URIs or names."""
    return [row for row in store.catalog.rows() if {row.video_id, row.uri, row.name} & {*names}]


def _explain_gone(rows: list[CatalogRow], recipe: Recipe) -> int:
    """What the store still holds of a video whose file is not there any more."""
    digest, is_hit = recipe_digest(recipe), False
    for row in rows:
        shown = redact_url(row.uri)
        print(f"gone: {shown} is not there any more; `sttm store rm {row.video_id}` removes what the store has of it")
        if row.status == "error":
            print(f"miss: indexing it failed: {row.error_code}: {row.error_message}")
        elif row.recipe_digest != digest:
            print(f"miss: {row.identity[:12]} was made by another recipe, {row.recipe_digest[:12]}")
        else:
            print(f"hit: {row.identity} was indexed {row.created_at} and still answers questions")
            is_hit = True
    return 0 if is_hit else EXIT_ERROR


def _difference(store: Store, row: CatalogRow, recipe: Recipe, ref: VideoRef, digest: str) -> str:
    """How one stored row of this video differs from what was asked for."""
    if row.status == "error":
        return f"indexing {redact_url(row.uri)} failed: {row.error_code}: {row.error_message}"
    manifest = store.manifest(row.identity)
    found = [
        f"{d.path} is {json.dumps(d.left)}, asked for {json.dumps(d.right)}"
        for d in differences(manifest.recipe, recipe)
    ]
    if manifest.content_digest != digest:
        found.append(
            f"content is {manifest.content_digest[:12]} of {redact_url(row.uri)}, this file's is {digest[:12]}"
        )
    return f"{row.identity[:12]} differs: " + "; ".join(found)


def command() -> None:
    """Entry point."""
    run(__doc__, explain=explain)


if __name__ == "__main__":
    command()
