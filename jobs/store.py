"""Looking after a store.

    python -m jobs.store ls --store URL [--sources]     what it holds; whether the videos are still there
    python -m jobs.store stat --store URL               sizes, and how long loading a cache will take
    python -m jobs.store verify --store URL             every byte against its digest; exit code 1 if something is wrong
    python -m jobs.store gc --store URL [--delete]      what no reader needs any more; deletes only when told to
    python -m jobs.store compact --store URL            join the catalog's parts
    python -m jobs.store requantise VIDEO --scheme int8 --store URL   from an exact artifact; needs no model
    python -m jobs.store export VIDEO FILE --store URL  the token table as fixed-shape float16 tensors
    python -m jobs.store rm VIDEO --store URL           a video with all its artifacts and rows, verified gone

`gc --delete` and `rm` must not run beside an index job of the same store.
"""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from jobs.command import EXIT_ERROR, run
from sttm.corpus import look_again
from sttm.errors import StoreError
from sttm.store import maintenance
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe, source_key
from sttm.store.kv.scheme import KVScheme
from sttm.store.store import Store
from sttm.store.tokens import export_tokens

StoreUrl = Annotated[str, typer.Option("--store", help="URL of the store")]
Video = Annotated[str, typer.Argument(help="id, URI or file name of the video")]
PROBE_BYTES = 64 << 20


def ls(
    store: StoreUrl,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON line a row")] = False,
    sources: Annotated[bool, typer.Option("--sources", help="also look whether the videos are still there")] = False,
) -> None:
    """List videos and their artifacts, superseded ones too."""
    opened = Store.open(store)
    found = [(s.row, "superseded", s.by.identity or s.by.error_code) for s in maintenance.superseded(opened)]
    found += [(row, row.status, "") for row in opened.catalog.rows()]
    states = source_states(opened, [row for row, _, _ in found]) if sources else [""] * len(found)
    table = Table("video", "status", "tokens", "retained", "KV cache", "identity or cause", *["source"] * sources)
    for (row, status, by), state in zip(found, states, strict=True):
        if as_json:
            extra = {"superseded_by": by} if by else {}
            print(json.dumps({**row.__dict__, "status": status, **extra, **({"source": state} if sources else {})}))
        counts = (str(row.tokens_after), f"{row.retained_ratio:.1%}", f"{row.kv_bytes / 1e6:.1f} MB")
        cause = f"{row.identity[:12]}, by {by[:12]}" if by else row.identity[:12] or row.error_code
        table.add_row(row.video_id, status, *(counts if row.identity else ("", "", "")), cause, *[state] * sources)
    if not as_json:
        Console().print(table)


def stat(store: StoreUrl) -> None:
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


def verify(store: StoreUrl) -> int:
    """Read every committed byte and compare it with its digest."""
    problems = 0
    for problem in maintenance.verify(Store.open(store)):
        problems += 1
        print(f"{' '.join((*problem.videos, problem.identity[:12] or 'catalog'))}: {problem.message}")
    print(f"{problems} problems" if problems else "the store is as it was committed")
    return EXIT_ERROR if problems else 0


def gc(
    store: StoreUrl,
    min_age_hours: Annotated[float, typer.Option(min=0, help="leave alone what is younger")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="really delete; otherwise only list")] = False,
) -> None:
    """Find, and if told to delete, what no reader needs any more."""
    opened = Store.open(store)
    garbage = maintenance.find_garbage(opened, timedelta(hours=min_age_hours))
    for entry in garbage.objects:
        print(f"{entry.size_bytes:>12} {entry.key}")
    if delete:
        maintenance.collect_garbage(opened, garbage)
    verb = "deleted" if delete else "would be deleted (--delete does it)"
    print(f"{len(garbage.objects)} objects, {garbage.size_bytes / 1e6:.1f} MB {verb}")


def compact(store: StoreUrl) -> None:
    """Join the catalog's parts into one."""
    catalog = Store.open(store).catalog
    before = len(catalog.snapshot().parts)
    catalog.compact()
    print(f"{before} parts joined into {len(catalog.snapshot().parts)}")


def requantise(
    video: Video, store: StoreUrl, scheme: Annotated[str, typer.Option(help="KV scheme to convert to")] = "int8"
) -> None:
    """Derive an artifact of another scheme from an exact one."""
    if scheme not in get_args(KVScheme):
        raise StoreError(f"no KV scheme {scheme!r}; known: {', '.join(get_args(KVScheme))}")
    opened = Store.open(store)
    found = opened.find(video)
    artifacts = [row for row in opened.catalog.rows() if row.video_id == found.video_id and row.status == "ok"]
    exact = [r for r in artifacts if opened.manifest(r.identity).recipe["store"]["kv_scheme"] == "exact"]
    from sttm.store.requantise import requantise as derive  # with torch, which takes seconds

    row = derive(opened, (exact or [found])[-1], scheme)
    opened.catalog.append([row])
    print(f"{row.video_id}: {scheme}, {row.kv_bytes / 1e6:.2f} MB, {row.identity[:12]}")


def export(video: Video, file: Annotated[Path, typer.Argument(help="Parquet file to write")], store: StoreUrl) -> None:
    """Write a video's reduced tokens as a Parquet table of fixed-shape float16 tensors."""
    opened = Store.open(store)
    tokens = opened.load_tokens(opened.find(video).identity)
    file.write_bytes(export_tokens(tokens))
    print(f"{len(tokens.patches)} tokens written to {file}")


def rm(video: Video, store: StoreUrl) -> int:
    """Remove a video with all its artifacts and rows, and look whether it is gone."""
    opened = Store.open(store)
    gone = maintenance.remove(opened, video)
    left = [name for name in gone.deleted if opened.has(name) or opened.storage.keys(f"kv/{name[:2]}/{name}")]
    for identity in left:
        print(f"still there: kv/{identity[:2]}/{identity}")
    print(
        f"removed {gone.video_id}: {gone.rows} rows, {len(gone.deleted)} artifacts"
        + (", other videos share its content" if gone.shared else "")
    )
    return EXIT_ERROR if left else 0


def source_states(store: Store, rows: list[CatalogRow]) -> list[str]:
    """For each row: `there` as it was when the row was made, `changed` since, or `gone` (or not to be read).

    Looks at every file once, and reads none. Of an error row nobody may know the recipe; it is then never `changed`.
    """
    refs = {ref.uri: ref for ref in look_again(sorted({row.uri for row in rows}))}
    recipes: dict[str, Recipe] = {}
    for row in rows:
        if row.identity and row.recipe_digest not in recipes:
            recipes[row.recipe_digest] = store.manifest(row.identity).recipe
    states = []
    for row in rows:
        ref, recipe = refs[row.uri], recipes.get(row.recipe_digest)
        if ref.size_bytes is None:
            states.append("gone")
        elif recipe and source_key(ref.uri, ref.size_bytes, ref.version, recipe) != row.source_key:
            states.append("changed")
        else:
            states.append("there")
    return states


def _bytes_per_second(store: Store) -> float:
    """Reading rate of the largest artifact, 0 for an empty store."""
    rows = [row for row in store.catalog.rows() if row.status == "ok"]
    if not rows:
        return 0.0
    file = store.manifest(max(rows, key=lambda row: row.kv_bytes).identity).kv
    size = min(file.size_bytes, PROBE_BYTES)
    started = time.perf_counter()
    store.storage.read_into(file.key, [(0, memoryview(bytearray(size)))])
    return size / (time.perf_counter() - started)


def command() -> None:
    """Entry point."""
    run(__doc__, ls=ls, stat=stat, verify=verify, gc=gc, compact=compact, requantise=requantise, export=export, rm=rm)


if __name__ == "__main__":
    command()
