"""Ask about a stored video. The answer comes from its stored KV cache: no video is decoded and no frame encoded.

    python -m jobs.ask --store /data/store --video clip.mp4 "What colour is the ball?"
    python -m jobs.ask --store /data/store --video clip.mp4 "What is it?" "Why?"        # a follow-up
    python -m jobs.ask --store /data/store --video clip.mp4 "Which one?" --option red --option blue
    python -m jobs.ask --store /data/store --video clip.mp4 "What happens?" --set sampling.max_tokens=200

The model is the one that made the cache; `model.path` can name another copy of it. Settings are those of the sections
`sampling`, `cache`, `run.gpus_per_model` and `model.path`.

Several videos (--video a --video b --approximate) are put one after the other. Their caches were made apart, which
costs some accuracy: see `sttm.engine.compose`.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from jobs.command import OptionalConfigOption, RecipeOption, SetOption, StoreOption, run
from jobs.config import JobConfig
from sttm.config import load_config
from sttm.engine.ready_video import ReadyVideo
from sttm.errors import ConfigError, QuestionError
from sttm.models.placement import first_gpus
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query, fault
from sttm.query.worker import QueryWorker
from sttm.store.catalog.row import CatalogRow
from sttm.store.recipes import choose_recipe
from sttm.store.store import Store

_LONG_S = 2.0


def ask(
    questions: Annotated[list[str], typer.Argument(help="the question; each further one is a follow-up")],
    store: StoreOption,
    video: Annotated[list[str], typer.Option(help="id, URI or file name; several need --approximate")],
    recipe: RecipeOption = None,
    option: Annotated[
        list[str] | None, typer.Option(help="choose the likeliest of these options; generates no text")
    ] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="ask about several videos, one after the other")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON line for each question")] = False,
    config: OptionalConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Answer questions about a stored video."""
    settings = load_config(JobConfig, config, set_)
    _require_possible(questions, option or [], len(video), approximate)
    opened = Store.open(store)
    chosen = choose_recipe(opened, recipe, video[0])
    rows = [opened.find(name, chosen.digest) for name in video]
    checkpoint = open_checkpoint(opened.manifest(rows[0].identity), settings.model.path)
    for line in filter(None, (chosen.notice, checkpoint.notice)):
        print(line, file=sys.stderr, flush=True)
    with _named_if_long(f"loading the model {checkpoint.name}"):
        worker = QueryWorker(opened, checkpoint, first_gpus(settings.run.gpus_per_model), settings.cache)

    started = time.perf_counter()
    with _named_if_long("loading the video's KV cache"):
        ready = worker.load(*(row.identity for row in rows))
    load_s = time.perf_counter() - started
    turns: list[str] = []
    for question in questions:
        turns.append(question)
        query = Query(tuple(turns), settings.sampling)
        found = _choose(worker, ready, question, option) if option else _generate(worker, ready, query)
        turns.append(found["answer"])
        _show({**_about(rows, question, ready), **found, "load_s": load_s}, as_json)
        load_s = 0.0  # the video stays loaded for a follow-up
    if worker.disk is not None:
        worker.disk.close()
    return 0


def _require_possible(questions: list[str], options: list[str], videos: int, approximate: bool) -> None:
    """Check everything that can be checked before a model is loaded."""
    if options and (len(questions) > 1 or len(options) < 2):
        raise ConfigError(
            f"{len(questions)} questions, {len(options)} options; --option takes one question, 2 or more options"
        )
    for question in questions:
        if cause := fault(question, options):
            raise QuestionError(f"cannot ask {question[:80]!r}: {cause}")
    if videos > 1 and not approximate:
        raise ConfigError(f"{videos} videos: none has seen the others; --approximate puts their caches in a row")


@contextmanager
def _named_if_long(phase: str) -> Iterator[None]:
    """Print the name of a phase to standard error if it takes longer than 2 seconds."""
    timer = threading.Timer(_LONG_S, lambda: print(f"{phase} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _generate(worker: QueryWorker, video: ReadyVideo, query: Query) -> dict[str, Any]:
    """Generate an answer. Returns its text and its times in seconds."""
    started = time.perf_counter()
    answers = worker.start(video, [query])
    answers.step()
    first = time.perf_counter()
    while answers.is_running:
        answers.step()
    ended = time.perf_counter()
    return {"answer": answers.texts[0], "ttft_s": first - started, "total_s": ended - started}


def _choose(worker: QueryWorker, video: ReadyVideo, question: str, options: list[str]) -> dict[str, Any]:
    """Choose an option. Returns it, the probability of each option, and the times in seconds."""
    started = time.perf_counter()
    (choice,) = worker.choose(video, [[question]], [options])
    took = time.perf_counter() - started
    probabilities = dict(zip(options, (round(p, 6) for p in choice.probabilities), strict=True))
    return {"answer": options[choice.index], "probabilities": probabilities, "ttft_s": took, "total_s": took}


def _about(rows: list[CatalogRow], question: str, video: ReadyVideo) -> dict[str, Any]:
    return {
        "video": " ".join(row.video_id for row in rows),
        "name": " ".join(row.name for row in rows),
        "question": question,
        "identity": " ".join(row.identity for row in rows),
        "kv_tokens": video.keys[-1].shape[1],
    }


def _show(found: dict[str, Any], as_json: bool) -> None:
    """Print one answer. Its times count from the start of loading the video."""
    found |= {"answer": found["answer"].strip()}
    found |= {"ttft_s": found["ttft_s"] + found["load_s"], "total_s": found["total_s"] + found["load_s"]}
    if as_json:
        print(json.dumps({k: round(v, 4) if k.endswith("_s") else v for k, v in found.items()}), flush=True)
        return
    print(found["answer"] or "(the model's answer is empty)")
    loading = f", of which loading the cache {found['load_s']:.3f} s" if found["load_s"] else ""
    print(f"[{found['name']}: first token after {found['ttft_s']:.3f} s{loading}; {found['kv_tokens']} tokens cached]")


def command() -> None:
    """Entry point."""
    run(__doc__, ask=ask)


if __name__ == "__main__":
    command()
