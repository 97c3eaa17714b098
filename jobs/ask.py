"""Ask about a stored video: loads its KV cache and the language model, nothing else.

    python -m jobs.ask --store /data/store --video clip.mp4 "What colour is the ball?"
    python -m jobs.ask --store /data/store --video clip.mp4 "What is it?" "Why?"        # a follow-up
    python -m jobs.ask --store /data/store --video clip.mp4 "Which one?" --option red --option blue

Several videos (`--video a --video b --approximate`) are put in a row from caches that were made apart, which costs some
accuracy: see `sttm.engine.compose`.

No Ray, no video decoder, no vision tower. The model is the one that made the cache; its digests are compared first.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.command import run
from sttm.engine.ready_video import ReadyVideo
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ConfigError, QuestionError
from sttm.models.placement import first_gpus
from sttm.query.cache_tier import CacheConfig
from sttm.query.checkpoint import open_checkpoint
from sttm.query.conversation import Conversation
from sttm.query.question import fault
from sttm.query.text_stream import TextStream
from sttm.query.worker import QueryWorker, joined
from sttm.store.store import Store


def ask(
    questions: Annotated[list[str], typer.Argument(help="what to ask; each further one is a follow-up")],
    store: Annotated[str, typer.Option(help="a store that jobs.index filled")],
    video: Annotated[list[str], typer.Option(help="id, URI or file name; several need --approximate")],
    model: Annotated[str | None, typer.Option(help="checkpoint; default the one that made the cache")] = None,
    option: Annotated[list[str] | None, typer.Option(help="choose the likeliest of these, generate nothing")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="sample from this much probability")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="makes sampling repeatable")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends the answer")] = None,
    disk_cache: Annotated[Path | None, typer.Option(help="folder for copies of a remote store's caches")] = None,
    gpus_per_model: Annotated[int, typer.Option(min=1, help="GPUs to spread the model over")] = 1,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="ask about several videos, as if in a row")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON line a question")] = False,
) -> int:
    """Answer questions about a stored video."""
    if option and (len(questions) > 1 or len(option) < 2):
        raise ConfigError(f"{len(questions)} questions, {len(option)} options; --option takes one question, 2 or more")
    for question in questions:
        if cause := fault(question, option or ()):
            raise QuestionError(f"cannot ask {question[:80]!r}: {cause}")
    sampling = SamplingConfig.checked(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if len(video) > 1 and not approximate:
        raise ConfigError(f"{len(video)} videos: none has seen the others; --approximate puts their caches in a row")
    opened = Store.open(store)
    rows = [opened.find(name) for name in video]
    checkpoint = open_checkpoint(opened.manifest(rows[0].identity), model)
    worker = QueryWorker(opened, checkpoint, first_gpus(gpus_per_model), CacheConfig(disk=disk_cache))

    started = time.perf_counter()
    identities = [row.identity for row in rows]
    prepared = worker.load(joined(identities))
    load_s = time.perf_counter() - started
    talk = worker.talk(prepared)
    for question in questions:
        found = _choose(worker, prepared, question, option) if option else _say(worker, talk, question, sampling, stop)
        found = {"video": " ".join(row.video_id for row in rows), "question": question, **found, "load_s": load_s}
        found |= {"ttft_s": found["ttft_s"] + load_s, "total_s": found["total_s"] + load_s}
        found |= {"kv_tokens": prepared.keys[-1].shape[1], "identity": " ".join(identities)}
        _show(found, " ".join(row.name for row in rows), as_json)
        load_s = 0.0  # a follow-up loads nothing
    if worker.disk is not None:
        worker.disk.close()
    return 0


def _say(
    worker: QueryWorker, talk: Conversation, question: str, sampling: SamplingConfig, stop: list[str] | None
) -> dict[str, Any]:
    """Generate an answer; its text and times in seconds."""
    stream = TextStream(worker.family.tokenizer, stop or ())
    started = time.perf_counter()
    first = None
    for token in talk.ask(question, sampling):
        first = first or time.perf_counter()
        stream.push(token)
        if stream.is_stopped:
            break
    stream.end()
    ended = time.perf_counter()
    return {"answer": stream.text.strip(), "ttft_s": (first or ended) - started, "total_s": ended - started}


def _choose(worker: QueryWorker, video: ReadyVideo, question: str, options: list[str]) -> dict[str, Any]:
    """Choose an option; with the probability of each."""
    started = time.perf_counter()
    (choice,) = worker.choose(video, [[question]], [options])
    took = time.perf_counter() - started
    probabilities = dict(zip(options, (round(p, 6) for p in choice.probabilities), strict=True))
    return {"answer": options[choice.index], "probabilities": probabilities, "ttft_s": took, "total_s": took}


def _show(found: dict[str, Any], name: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({k: round(v, 4) if k.endswith("_s") else v for k, v in found.items()}), flush=True)
        return
    print(found["answer"])
    loading = f", of which loading the cache {found['load_s']:.3f} s" if found["load_s"] else ""
    print(f"[{name}: first token after {found['ttft_s']:.3f} s{loading}; {found['kv_tokens']} tokens cached]")


def command() -> None:
    """Entry point."""
    run(__doc__, ask=ask)


if __name__ == "__main__":
    command()
