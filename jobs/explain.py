"""Why a video is, or is not, in a store under these settings.

    python -m jobs.explain clips/a.mp4 --store URL --config tiny            a video file: path or URI
    python -m jobs.explain a-5d41402abc4b --store URL --set merge.budget=0.5    or the id or name of a stored video

Reads the file to know its content digest, names the identity that its artifact would have, and compares the recipe with
those of what the store holds of this video, field by field. A file that cannot be read is looked up in the store alone.

Each line begins with what was found:

    hit         the store has the artifact that these settings make of this video
    miss        it does not: which fields of the recipe or which content differ, or why indexing failed
    superseded  an artifact of this file that a newer one replaced
    gone        the storage says that exactly this file does not exist; its artifacts still answer questions
    unreadable  the file cannot be looked at now (no rights, no such bucket, a server's error): it may well be there
    removed     `sttm store rm` removed the video from the store
    unknown     the store has no video of this id, URI or name, and there is no file to read

A line `frames` follows an artifact and says how many frames were taken, and how many `video.fps` asked for. It says
`thinned` where `video.max_frames` left some out. Below a hit it also says which settings leave out none.

Exit code 0 for a hit, 1 for everything else and after an error.
"""

import json
from itertools import chain
from typing import Annotated

import typer

from jobs.command import EXIT_ERROR, ConfigOption, SetOption, StoreOption, run
from jobs.config import JobConfig
from sttm.config import index_recipe, load_config
from sttm.corpus.listing import VideoRef, list_corpus, look_again
from sttm.errors import CorpusError, VideoError
from sttm.models.checkpoint import Checkpoint
from sttm.store.catalog.frame_counts import FrameCounts, frames_text
from sttm.store.catalog.history import Superseded, judge
from sttm.store.catalog.lookup import NamedRows, spellings_asked
from sttm.store.catalog.row import CatalogRow
from sttm.store.facts import Sampling
from sttm.store.key import Recipe, differences, identity, recipe_digest
from sttm.store.sources import Absence, absence
from sttm.store.store import Store
from sttm.urls import absolute_uri, is_http, redact_url
from sttm.video.file import read_video_file


def explain(
    video: Annotated[str, typer.Argument(help="path or URI of a video file; or id or name of a stored video")],
    store: StoreOption,
    config: ConfigOption = "tiny",
    set_: SetOption = None,
) -> int:
    """Say whether a store has a video under these settings, and if not, what differs."""
    settings = load_config(JobConfig, config, set_)
    recipe = index_recipe(settings.index, Checkpoint.open(settings.model))
    opened = Store.open(store)
    try:
        refs = list_corpus(video)
    except CorpusError as error:
        return _explain_unlisted(opened, video, recipe, settings.video.max_source_bytes, error)
    if len(refs) != 1:
        raise CorpusError(f"{redact_url(video)} names {len(refs)} videos; explain takes one")
    return _explain_file(opened, refs[0], recipe, settings.video.max_source_bytes)


def _explain_file(store: Store, ref: VideoRef, recipe: Recipe, max_bytes: int) -> int:
    """Compare a file with what the store has of it or of files with its name."""
    history = store.catalog.reader().history_of((ref.uri, ref.name))
    rows = [row for row in judge(history)[0] if {row.video_id, row.uri, row.name} & {ref.uri, ref.name}]
    try:
        _, digest = read_video_file(ref.uri, max_bytes)
    except (VideoError, OSError) as error:
        return _explain_rows(store, ref.uri, rows, recipe, Absence(False, str(error)))
    name = identity(recipe, digest)
    print(f"video     {redact_url(ref.uri)}\ncontent   {digest}\nrecipe    {recipe_digest(recipe)}\nidentity  {name}")
    for old in _superseded(store, history):
        if old.row.uri == ref.uri:
            by = old.by.identity[:12] or f"an error, {old.by.error_code}"
            print(f"superseded: {old.row.identity[:12]} of {old.row.created_at}, by {by} of {old.by.created_at}")
    if store.has(name):
        manifest = store.manifest(name)
        shown = redact_url(manifest.source.uri)
        print(f"hit: indexed {manifest.created_at} from {shown} by run {manifest.facts.run_id}")
        _print_frames(CatalogRow.of(manifest), recipe)
        _print_shift(manifest.facts.sampling)
        return 0
    if not rows:
        _print_removal(ref.uri, history)
        print("miss: the store holds nothing of this file or of one with its name")
    for row in rows:
        print(f"miss: {_cause(store, row, recipe, digest)}")
        _print_frames(row)
    return EXIT_ERROR


def _explain_unlisted(store: Store, video: str, recipe: Recipe, max_bytes: int, error: CorpusError) -> int:
    """Look up a text that names no file: it may be the id or name of a stored video, or the URI of a file out of reach.

    Raises:
        StoreError: several videos of the store have this name.
        CorpusError: there is a file, but no video can be listed from it.
    """
    reader, texts = store.catalog.reader(), (video, absolute_uri(video))
    for text in texts:
        rows = NamedRows(reader.candidates(text), store.storage.url)
        if rows.named(text):
            found = rows.rows_of(text)
            uri = found[0].uri
            missing = absence(uri)
            if missing is None:
                return _explain_file(store, look_again([uri])[0], recipe, max_bytes)
            return _explain_rows(store, uri, found, recipe, missing)
    history = reader.history_of({*texts, *chain.from_iterable(map(spellings_asked, texts))})
    if any(_print_removal(text, history) for text in texts):
        return EXIT_ERROR
    missing = absence(texts[1])
    if missing is None:
        raise error
    is_pattern = not is_http(video) and any(wildcard in video for wildcard in "*?[")
    cause = "this pattern matches no video" if is_pattern else missing.cause
    print(f"unknown: {store.storage.url} has no video of this id, URI or name; as a file: {cause}")
    return EXIT_ERROR


def _explain_rows(store: Store, uri: str, rows: list[CatalogRow], recipe: Recipe, missing: Absence) -> int:
    """Say what the store has of a video whose file is gone or cannot be read."""
    if missing.is_gone:
        remedy = f"; `sttm store rm {rows[0].video_id}` removes what the store has of it"
        print(f"gone: {redact_url(uri)}: {missing.cause}{remedy}")
    else:
        print(f"unreadable: {redact_url(uri)}: {missing.cause}")
    digest, is_hit = recipe_digest(recipe), False
    for row in rows:
        if row.status == "ok" and row.recipe_digest == digest:
            print(f"hit: {row.identity} was indexed {row.created_at} and still answers questions")
            _print_frames(row, recipe)
            _print_shift(store.manifest(row.identity).facts.sampling)
            is_hit = True
        else:
            print(f"miss: {_cause(store, row, recipe)}")
            _print_frames(row)
    if not rows:
        print("miss: the store holds nothing of this file or of one with its name")
    return 0 if is_hit else EXIT_ERROR


def _superseded(store: Store, history: list[CatalogRow]) -> list[Superseded]:
    """Artifacts of a video's history that wait for `gc`."""
    found = [s for s in judge(history)[1] if s.by.status != "removed"]
    needed = store.catalog.reader().needed(s.row.identity for s in found)
    return [s for s in found if s.row.identity not in needed and store.has(s.row.identity)]


def _print_frames(row: CatalogRow, recipe: Recipe | None = None) -> None:
    """Say how many frames an artifact was made of, if that is known, and which settings would thin the video no more.

    Args:
        row: the row of the artifact.
        recipe: the recipe that made it; None leaves the settings out.
    """
    if row.seconds_per_frame is None:
        return
    print(f"frames: {frames_text(row)}; one in {row.seconds_per_frame:.3g} s of {row.duration_s:,.1f} s")
    if recipe is not None and row.is_thinned:
        counts = FrameCounts()
        counts.add(row)
        print(counts.cure(recipe))


def _print_shift(sampling: Sampling) -> None:
    """Say how far key frames lie from the sampled frames in whose place they were taken, if any were."""
    if sampling.shift_mean_s is not None and sampling.shift_max_s is not None:
        shift = f"{sampling.shift_mean_s:.2f} s on average, {sampling.shift_max_s:.2f} s at most"
        print(f"key frames: taken in place of sampled frames, which lie {shift} away")


def _print_removal(text: str, history: list[CatalogRow]) -> bool:
    """Say when the video of a text was removed from the store, if its last row says so; returns whether it was."""
    found = NamedRows(history, "").named(text)
    if not found or found[-1].status != "removed":
        return False
    row = found[-1]
    print(f"removed: {row.video_id} was removed on {row.created_at}; index {redact_url(row.uri)} again to have it back")
    return True


def _cause(store: Store, row: CatalogRow, recipe: Recipe, digest: str | None = None) -> str:
    """How a stored row differs from what was asked for.

    Args:
        store: the store.
        row: a row of this video or of one with its name.
        recipe: the recipe asked for.
        digest: content digest of the file; None if the file was not read.
    """
    if row.status == "error":
        return f"indexing {redact_url(row.uri)} failed: {row.error_code}: {row.error_message}"
    manifest = store.manifest(row.identity)
    found = [
        f"{d.path} is {json.dumps(d.left)}, asked for {json.dumps(d.right)}"
        for d in differences(manifest.recipe, recipe)
    ]
    if digest not in (None, manifest.content_digest):
        found.append(
            f"content is {manifest.content_digest[:12]} of {redact_url(row.uri)}, this file's is {str(digest)[:12]}"
        )
    return f"{row.identity[:12]} differs: " + "; ".join(found)


def command() -> None:
    """Entry point."""
    run(__doc__, explain=explain)


if __name__ == "__main__":
    command()
