"""Looking after a store.

    python -m jobs.store ls --store URL [--sources]     recipes and videos; whether the video files are still there
    python -m jobs.store stat --store URL               sizes, and how long loading a cache will take
    python -m jobs.store verify --store URL             every byte against its digest; exit code 1 if something is wrong
    python -m jobs.store gc --store URL [--delete]      what no reader needs any more; deletes only when told to
    python -m jobs.store compact --store URL            join the catalog's parts; carries over one of an older program
    python -m jobs.store repair --store URL             rows for artifacts that have none
    python -m jobs.store requantise VIDEO --scheme int8 --store URL   from an exact artifact; needs no model
    python -m jobs.store export VIDEO FILE --store URL [--recipe NAME]   the token table as float16 tensors
    python -m jobs.store rm VIDEO --store URL [--yes]   a video with all its artifacts and rows, verified gone

VIDEO is a video's id, URI or file name. `gc --delete` and `rm` must not run beside an index job of the same store.

Exit code 0 if all went well, 1 after an error, where `verify` finds a problem, or where `rm` removes nothing.
"""

import json
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table
from rich.text import Text

from jobs.command import EXIT_ERROR, RecipeOption, StoreOption, print_table, run
from sttm.errors import StoreError
from sttm.store import maintenance
from sttm.store.catalog.frame_counts import frames_record, frames_text
from sttm.store.catalog.lookup import NamedRows
from sttm.store.catalog.row import CatalogRow
from sttm.store.kv.scheme import KVScheme
from sttm.store.recipes import SHORT_NAME_DIGITS, StoredRecipe, choose_recipe, stored_recipes
from sttm.store.sources import source_states
from sttm.store.storage import Storage, public_url
from sttm.store.store import Store

Video = Annotated[str, typer.Argument(help="id, URI or file name of the video")]
PROBE_BYTES = 64 << 20


def ls(
    store: StoreOption,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON line a row, with its recipe")] = False,
    sources: Annotated[bool, typer.Option("--sources", help="also look whether the videos are still there")] = False,
) -> None:
    """List recipes and videos with their artifacts, superseded ones too."""
    opened = Store.open(store)
    rows = opened.catalog.rows()
    recipes = stored_recipes(opened, rows)
    found = [(s.row, "superseded", s.by.identity or s.by.error_code) for s in maintenance.superseded(opened)]
    found += [(row, row.status, "") for row in rows]
    states = source_states(opened, [row for row, _, _ in found]) if sources else [""] * len(found)
    if as_json:
        by_digest = {recipe.digest: recipe for recipe in recipes}
        for (row, status, by), state in zip(found, states, strict=True):
            about: dict[str, Any] = {"recipe": _recipe_record(row.recipe_digest, by_digest.get(row.recipe_digest))}
            about |= {"superseded_by": by} if by else {}
            about |= {"source": state} if sources else {}
            print(json.dumps({**frames_record(row), **row.__dict__, "status": status, **about}))
        return
    if not found:
        print(f"no videos in {opened.storage.url}")
        return
    columns = ("video", "status", "recipe", "length", "frames", "one frame in", "tokens", "retained", "KV cache")
    table = Table(*columns, "identity or cause", *["source"] * sources)
    for (row, status, by), state in zip(found, states, strict=True):
        table.add_row(*map(Text, (*_cells(row, status, by), *[state] * sources)))
    print_table(table)
    print_table(_recipe_table(recipes))


def _cells(row: CatalogRow, status: str, superseded_by: str) -> tuple[str, ...]:
    length = f"{row.duration_s:,.1f} s" if row.duration_s else ""
    every = "" if row.seconds_per_frame is None else f"{row.seconds_per_frame:.3g} s"
    tokens = (str(row.tokens_after), f"{row.retained_ratio:.1%}", f"{row.kv_bytes / 1e6:.1f} MB")
    counts = (length, frames_text(row), every, *tokens)
    cause = row.identity[:12] or row.error_code
    cause += f", by {superseded_by[:12]}" if superseded_by else ""
    return row.video_id, status, row.recipe_digest[:SHORT_NAME_DIGITS], *(counts if row.identity else [""] * 6), cause


def _recipe_table(recipes: list[StoredRecipe]) -> Table:
    """One line a recipe, newest first."""
    columns = ("recipe", "model", "frames", "tokens kept", "merge layer", "KV scheme", "videos", "size", "newest")
    table = Table(*columns)
    for recipe in recipes:
        rate = "" if recipe.fps is None else f", {recipe.fps:g} a second"
        frames = "" if recipe.max_frames is None else f"at most {recipe.max_frames}{rate}"
        layer = "" if recipe.merge_layer is None else str(recipe.merge_layer)
        counts = (str(recipe.videos), f"{(recipe.size_bytes or 0) / 1e6:.1f} MB", recipe.created_at[:16])
        cells = (recipe.name, recipe.model or "unknown model", frames, recipe.kept, layer, recipe.scheme, *counts)
        table.add_row(*map(Text, cells))
    return table


def _recipe_record(digest: str, recipe: StoredRecipe | None) -> dict[str, Any]:
    """The JSON object of a row's recipe: its name alone, if no usable artifact of the store was made with it."""
    return {"name": digest[:SHORT_NAME_DIGITS], **(asdict(recipe) if recipe else {})}


def stat(store: StoreOption) -> None:
    """Count what the store holds and measure how fast it loads."""
    opened = Store.open(store)
    counts = maintenance.count(opened)
    rate = _bytes_per_second(opened)
    mean = counts.kv_bytes / max(1, counts.artifacts)
    facts = {
        "videos": counts.videos,
        "artifacts": counts.artifacts,
        "errors": counts.errors,
        "superseded": counts.superseded,
        "superseded_bytes": counts.superseded_bytes,
        "kv_bytes": counts.kv_bytes,
        "tokens_bytes": counts.tokens_bytes,
        "retained_ratio": round(counts.tokens_after / max(1, counts.tokens_before), 4),
        "recipes": len(counts.recipes),
        "read_bytes_per_s": round(rate),
        "predicted_load_s": round(mean / rate, 4) if rate else None,
    }
    print(json.dumps(facts))


def verify(store: StoreOption) -> int:
    """Read every committed byte and compare it with its digest."""
    problems = 0
    for problem in maintenance.verify(Store.open(store)):
        problems += 1
        print(f"{' '.join((*problem.videos, problem.identity[:12] or 'catalog'))}: {problem.message}")
    print(f"{problems} problems" if problems else "the store is as it was committed")
    return EXIT_ERROR if problems else 0


def gc(
    store: StoreOption,
    min_age_hours: Annotated[float, typer.Option(min=0, help="leave younger objects alone")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="really delete; otherwise only list")] = False,
) -> None:
    """List what no reader needs any more, and delete it if told to."""
    opened = Store.open(store)
    garbage = maintenance.find_garbage(opened, timedelta(hours=min_age_hours))
    for entry in garbage.objects:
        print(f"{entry.size_bytes:>12} {entry.key}")
    if delete:
        maintenance.collect_garbage(opened, garbage)
    verb = "deleted" if delete else "would be deleted (--delete does it)"
    print(f"{len(garbage.objects)} objects, {garbage.size_bytes / 1e6:.1f} MB {verb}")


def compact(store: StoreOption) -> None:
    """Join the catalog's parts into one; a catalog that an older program wrote is carried over."""
    catalog = Store.open(store).catalog
    before = len(catalog.log.newest().holders)
    catalog.compact()
    print(f"{before} parts joined into {len(catalog.log.newest().holders)}")


def repair(store: StoreOption) -> None:
    """Add rows for artifacts that have none, as a killed run leaves them; without a catalog, write it anew."""
    recovered = Store.open(store).catalog.repair()
    print(f"{len(recovered)} rows added")


def requantise(
    video: Video, store: StoreOption, scheme: Annotated[str, typer.Option(help="KV scheme to convert to")] = "int8"
) -> None:
    """Derive an artifact of another scheme from an exact one."""
    if scheme not in get_args(KVScheme):
        raise StoreError(f"no KV scheme {scheme!r}; known: {', '.join(get_args(KVScheme))}")
    opened = Store.open(store)
    found = opened.find(video)
    same_name = opened.catalog.reader().candidates(found.video_id)
    artifacts = [row for row in same_name if row.video_id == found.video_id and row.status == "ok"]
    exact = [r for r in artifacts if opened.manifest(r.identity).recipe["store"]["kv_scheme"] == "exact"]
    from sttm.store.requantise import requantise as derive  # imports torch, which takes seconds

    row = derive(opened, (exact or [found])[-1], scheme)
    opened.catalog.append([row])
    print(f"{row.video_id}: {scheme}, {row.kv_bytes / 1e6:.2f} MB, {row.identity[:12]}")


def export(
    video: Video,
    file: Annotated[str, typer.Argument(help="Parquet file to write: a path or s3://bucket/path")],
    store: StoreOption,
    recipe: RecipeOption = None,
) -> None:
    """Write a video's reduced tokens as a Parquet table of fixed-shape float16 tensors."""
    opened = Store.open(store)
    chosen = choose_recipe(opened, recipe, video)
    if chosen.notice:
        print(chosen.notice, file=sys.stderr)
    from sttm.store.tokens import export_tokens  # imports torch, which takes seconds

    tokens = opened.load_tokens(opened.find(video, chosen.digest).identity)
    _write(file, export_tokens(tokens))
    print(f"{len(tokens.patches)} tokens written to {public_url(file)}")


def rm(
    video: Video,
    store: StoreOption,
    yes: Annotated[bool, typer.Option("--yes", help="remove without asking")] = False,
) -> int:
    """Remove a video with all its artifacts and rows, and check that nothing of it is left."""
    opened = Store.open(store)
    reader, url = opened.catalog.reader(), opened.storage.url
    named = NamedRows(reader.candidates(video), url, reader.suggestion)
    if not yes and not _agrees(named.rows_of(video), url):
        print("nothing was removed")
        return EXIT_ERROR
    gone = maintenance.remove(opened, video)
    left = [name for name in gone.deleted if opened.has(name) or opened.storage.keys(f"kv/{name[:2]}/{name}")]
    for identity in left:
        print(f"still there: kv/{identity[:2]}/{identity}")
    print(
        f"removed {gone.video_id}: {gone.rows} rows, {len(gone.deleted)} artifacts"
        + (", other videos share its content" if gone.shared else "")
    )
    return EXIT_ERROR if left else 0


def _agrees(rows: list[CatalogRow], url: str) -> bool:
    """Ask whether the video of these rows is to be removed.

    Raises:
        StoreError: nobody can be asked.
    """
    sizes = {row.identity: row.kv_bytes + row.tokens_bytes for row in rows if row.identity}
    artifacts = "1 artifact" if len(sizes) == 1 else f"{len(sizes)} artifacts"
    what = f"{rows[0].video_id} ({rows[0].name}) with {artifacts}, {sum(sizes.values()) / 1e6:.1f} MB"
    if not sys.stdin.isatty():
        raise StoreError(f"not a terminal, so nobody can be asked whether to remove {what}; give --yes to remove it")
    return typer.confirm(f"Remove {what}, from {url}?")


def _write(url: str, data: bytes) -> None:
    """Write a file to a local path or to storage that can hold a store.

    Raises:
        StoreError: the file cannot be written.
    """
    if "://" in url and not url.startswith("file://"):
        folder, _, name = url.rpartition("/")
        Storage(folder).put(name, data)
        return
    path = Path(url.removeprefix("file://")).expanduser()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; give a file in a folder that exists") from None


def _bytes_per_second(store: Store) -> float:
    """Rate at which the largest KV file is read; 0 for an empty store."""
    tables = store.catalog.reader().counting(("kv_bytes",))
    sizes = (zip(table["kv_bytes"].to_pylist(), table["identity"].to_pylist(), strict=True) for table in tables)
    size, identity = max(chain.from_iterable(sizes), default=(0, ""))
    if not identity:  # no video, or none that was indexed
        return 0.0
    file = store.manifest(identity).kv
    size = min(file.size_bytes, PROBE_BYTES)
    started = time.perf_counter()
    store.storage.read_into(file.key, [(0, memoryview(bytearray(size)))])
    return size / (time.perf_counter() - started)


def command() -> None:
    """Entry point."""
    verbs = (ls, stat, verify, gc, compact, repair, requantise, export, rm)
    run(__doc__, **{verb.__name__: verb for verb in verbs})


if __name__ == "__main__":
    command()
