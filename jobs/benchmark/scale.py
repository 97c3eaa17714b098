"""What a store of very many videos costs: each task in a process of its own, on a catalog of fabricated rows.

A task's cost is the CPU seconds, the memory above what the imports take, and the requests to the storage. No artifacts
are written, because these tasks read none.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm.corpus.listing import VideoRef
from sttm.errors import StoreError
from sttm.index_plan import key_of, make_plan
from sttm.store.catalog.row import CatalogRow
from sttm.store.catalog.view import CatalogView
from sttm.store.key import Recipe, make_recipe, recipe_digest
from sttm.store.recipes import choose_recipe
from sttm.store.storage import Storage
from sttm.store.store import Store

SIZES, LARGEST = (10_000, 100_000), 1_000_000
ROWS_PER_FLUSH, FLUSHES = 40, 100
_ROWS_AT_ONCE = 50_000
_REQUESTS = ("read", "read_into", "size", "put", "create", "delete", "entries")


def bench_scale(
    million: Annotated[bool, typer.Option("--million", help="also a store of 1,000,000 videos: takes minutes")] = False,
    videos: Annotated[int | None, typer.Option(min=100, help="a store of this size only")] = None,
) -> None:
    """Print what planning, finding, searching and writing cost in stores of 10,000 and 100,000 videos.

    Stores are made in a temporary folder, and only their catalogs. CPU seconds and memory are of one process for each
    task; memory is what comes on top of the imports. Examples:

        python -m jobs.bench scale
        python -m jobs.bench scale --million
    """
    from jobs.benchmark.timing import show  # imports torch, whose memory would hide that of the tasks

    rows = []
    for count in (videos,) if videos else (*SIZES, *[LARGEST] * million):
        folder = Path(tempfile.mkdtemp(prefix="sttm-scale-"))
        try:
            found = [_in_a_process(task, folder / "store", count) for task in TASKS]
        finally:
            shutil.rmtree(folder)
        show(found)
        rows += found
    print(json.dumps({"bench": "scale", "rows": rows}))


def fabricated_row(number: int, recipe: Recipe) -> CatalogRow:
    """The catalog row of a video that never was."""
    ref = fabricated_ref(number)
    tokens = 4_000 + number % 5_000
    return CatalogRow(
        video_id=ref.video_id,
        uri=ref.uri,
        name=ref.name,
        status="ok",
        recipe_digest=recipe_digest(recipe),
        source_key=key_of(ref, recipe),
        identity=sha256(b"artifact %d" % number).hexdigest(),
        content_digest=sha256(b"content %d" % number).hexdigest(),
        source_bytes=ref.size_bytes or 0,
        duration_s=60.0 + number % 600,
        frames=128,
        frames_asked=600,
        frames_left_out=472,
        kv_bytes=tokens * 28_672,
        tokens_bytes=tokens * 700,
        tokens_before=tokens * 3,
        tokens_after=tokens,
        retained_ratio=1 / 3,
        thresholds={"spatial": 0.8, "temporal": 0.7},
        timings_s={"read": 0.1, "decode": 1.0 + number % 7, "prefill": 0.5},
        run_id="fabricated",
    )


def fabricated_ref(number: int) -> VideoRef:
    """The listed file of a video that never was."""
    name = f"clip-{number:08d}.mp4"
    uri, size_bytes = f"s3://bucket/videos/{number % 1000:03d}/{name}", 10_000_000 + number
    return VideoRef(uri, f"clip-{number:08d}", name, size_bytes, f"etag:{number:032x}")


def _make(store: Store, videos: int) -> None:
    recipe = _recipe()
    for start in range(0, videos, _ROWS_AT_ONCE):
        numbers = range(start, min(videos, start + _ROWS_AT_ONCE))
        store.catalog.append([fabricated_row(number, recipe) for number in numbers])


def _find(text: str) -> Callable[[Store, int], None]:
    def task(store: Store, videos: int) -> None:
        number = videos // 2
        store.find(text.format(number=number, folder=number % 1000))

    return task


def _misspelt(store: Store, videos: int) -> None:
    with suppress(StoreError):
        store.find("clip-0x000001.mp4")


def _choose(store: Store, videos: int) -> None:
    choose_recipe(store)


def _plan(store: Store, videos: int) -> None:
    """A night with 1 % of the corpus new."""
    refs = (fabricated_ref(number) for number in range(videos + videos // 100))
    plan = make_plan(refs, _recipe(), store, retry_errors=False)
    assert (plan.stored, len(plan.todo)) == (videos, videos // 100)


def _search(store: Store, videos: int) -> None:
    """The first page of a service's search, which reads a few columns of all rows."""
    assert CatalogView(store.storage).search("CLIP-0", 0, 50)[1] == videos


def _news(store: Store, videos: int) -> None:
    """A service after one new row: found, and listed, without a look at the others. Counted from the new row on."""
    view = CatalogView(store.storage, max_age_s=0)
    view.search("", 0, 50)
    recipe = _recipe()
    store.catalog.append([fabricated_row(videos + videos // 10, recipe)])
    _start_again()
    assert view.search("", 0, 50)[1] == videos + 1
    view.find(fabricated_ref(videos + videos // 10).video_id)


def _append(store: Store, videos: int) -> None:
    recipe, first = _recipe(), videos * 2
    flushes = [
        [fabricated_row(first + flush * ROWS_PER_FLUSH + row, recipe) for row in range(ROWS_PER_FLUSH)]
        for flush in range(FLUSHES)
    ]
    _start_again()
    for rows in flushes:
        store.catalog.append(rows)


def _beside(store: Store, videos: int) -> None:
    """What the flushes of a run cost that asks after each one what another run has stored."""
    recipe, seen = _recipe(), store.catalog.log.newest().version
    row = fabricated_row(videos * 3, recipe)
    flushes = [[replace(row, video_id=f"{n}-{r}", uri=f"s3://b/{n}-{r}") for r in range(40)] for n in range(FLUSHES)]
    _start_again()
    for rows in flushes:
        store.catalog.append(rows)
        reader = store.catalog.reader()
        reader.added_since(seen, ("source_key", "status", "run_id"))
        seen = reader.snapshot.version


def _compact(store: Store, videos: int) -> None:
    store.catalog.compact()


TASKS: dict[str, Callable[[Store, int], None]] = {
    "make the store": _make,
    "plan, 1 % new": _plan,
    "find by id": _find("clip-{number:08d}"),
    "find by name": _find("clip-{number:08d}.mp4"),
    "find by URI": _find("s3://bucket/videos/{folder:03d}/clip-{number:08d}.mp4"),
    "choose the recipe": _choose,
    "a misspelt name": _misspelt,
    "first search": _search,
    "one new row in a service": _news,
    f"{FLUSHES} flushes of {ROWS_PER_FLUSH}": _append,
    f"{FLUSHES} flushes beside a run": _beside,
    "find by id after the flushes": _find("clip-{number:08d}"),
    "compact": _compact,
}


def _recipe() -> Recipe:
    return make_recipe(model={"id": "tiny"}, merge={"budget": 0.3}, store={"kv_scheme": "int8"})


def _in_a_process(task: str, store: Path, videos: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.benchmark.scale", task, str(store), str(videos)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 (our own program)
    return {"videos": videos, "task": task, **json.loads(done.stdout)}


_counted: Counter[str] = Counter()
_started: list[float] = [0.0]


def _start_again() -> None:
    """Count from here on: what came before belongs to the preparation of a task."""
    _counted.clear()
    _started[0] = time.process_time()


def _counting(name: str) -> None:
    request = getattr(Storage, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        _counted[name] += 1
        return request(*args, **kwargs)

    setattr(Storage, name, counted)


def _peak_mb() -> float:
    """The most memory that this process ever had; unlike `getrusage`, without that of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _main(task: str, url: str, videos: str) -> None:
    """Run one task and print what it cost as one line of JSON."""
    for name in _REQUESTS:
        _counting(name)
    store, before = Store.open(url, create=True), _peak_mb()
    _start_again()
    TASKS[task](store, int(videos))
    cost = {"cpu_s": round(time.process_time() - _started[0], 4), "peak_mb": round(_peak_mb() - before)}
    print(json.dumps({**cost, "requests": sum(_counted.values())}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
