"""Why a video is, or is not, in a store under these settings.

    python -m jobs.explain clips/a.mp4 --store URL --config configs/tiny.yaml

Reads the file (to know its content digest), names the identity it would have, and compares the recipe with those of
what the store holds of this video, field by field. Exit code 0 if it is a hit, 1 if not.
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
from sttm.store.catalog import CatalogRow
from sttm.store.key import Recipe, differences, identity, recipe_digest
from sttm.store.store import Store
from sttm.video_file import read_video_file


def explain(
    video: Annotated[str, typer.Argument(help="path or URI of a video file")],
    store: Annotated[str, typer.Option(help="URL of the store")],
    config: Annotated[str, typer.Option(help="YAML settings")] = "configs/tiny.yaml",
    set_: Annotated[list[str] | None, typer.Option("--set", help="override, such as merge.budget=0.5")] = None,
) -> int:
    """Say whether a store has a video under these settings, and if not, what differs."""
    refs = list_corpus(video)
    if len(refs) != 1:
        raise CorpusError(f"{video} names {len(refs)} videos; explain takes one")
    settings = load_config(JobConfig, config, set_)
    recipe = index_recipe(settings.index, Checkpoint.open(settings.model))
    opened = Store.open(store)
    _, digest = read_video_file(refs[0].uri, settings.video.max_source_bytes)
    name = identity(recipe, digest)
    print(f"video     {refs[0].uri}\ncontent   {digest}\nrecipe    {recipe_digest(recipe)}\nidentity  {name}")
    if opened.has(name):
        manifest = opened.manifest(name)
        print(f"hit: indexed {manifest.created_at} from {manifest.source.uri} by run {manifest.facts.run_id}")
        return 0
    rows = [row for row in opened.catalog.rows() if row.uri == refs[0].uri or row.name == refs[0].name]
    if not rows:
        print("miss: the store holds nothing of this file or of one with its name")
    for row in rows:
        print(f"miss: {_difference(opened, row, recipe, refs[0], digest)}")
    return EXIT_ERROR


def _difference(store: Store, row: CatalogRow, recipe: Recipe, ref: VideoRef, digest: str) -> str:
    """How one stored row of this video differs from what was asked for."""
    if row.status == "error":
        return f"indexing {row.uri} failed: {row.error_code}: {row.error_message}"
    manifest = store.manifest(row.identity)
    found = [
        f"{d.path} is {json.dumps(d.left)}, asked for {json.dumps(d.right)}"
        for d in differences(manifest.recipe, recipe)
    ]
    if manifest.content_digest != digest:
        found.append(f"content is {manifest.content_digest[:12]} of {row.uri}, this file's is {digest[:12]}")
    return f"{row.identity[:12]} differs: " + "; ".join(found)


def command() -> None:
    """Entry point."""
    run(explain=explain)


if __name__ == "__main__":
    command()
