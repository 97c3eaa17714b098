"""Ask one question about a stored video: loads its KV cache and the language model, nothing else.

    python -m jobs.ask --store /data/store --video clip.mp4 "What colour is the ball?"

No Ray, no video decoder, no vision tower. The model is the one that made the cache; its digests are compared first.
"""

import json
import time
from typing import Annotated

import torch
import typer

from jobs.command import run
from sttm.engine.answer import SamplingConfig, generate, ready
from sttm.errors import ModelError
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.artifact import Manifest
from sttm.store.key import differences
from sttm.store.store import Store


def ask(
    question: Annotated[str, typer.Argument(help="what to ask")],
    store: Annotated[str, typer.Option(help="a store that jobs.index filled")],
    video: Annotated[str, typer.Option(help="id, URI or file name of the video")],
    model: Annotated[str | None, typer.Option(help="checkpoint; default the one that made the cache")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON line")] = False,
) -> int:
    """Answer a question about one stored video."""
    opened = Store.open(store)
    row = opened.find(video)
    manifest = opened.manifest(row.identity)
    checkpoint = open_checkpoint(manifest, model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    language_model = checkpoint.load_language_model(device)
    family = checkpoint.family(with_processor=False)
    ids = family.question_ids(question)
    stop = family.stop_ids(checkpoint.generation_config)

    started = time.perf_counter()
    prepared = ready(language_model, opened.load_kv(row.identity))
    loaded = time.perf_counter()
    tokens: list[int] = []
    first = None
    for step in generate(language_model, prepared, [ids], stop, SamplingConfig(max_tokens=max_tokens)):
        first = first or time.perf_counter()
        tokens += [t for t in step if t is not None]
    ended = time.perf_counter()
    result = {
        "video": row.video_id,
        "question": question,
        "answer": family.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        "ttft_s": round((first or ended) - started, 4),
        "load_s": round(loaded - started, 4),
        "total_s": round(ended - started, 4),
        "kv_tokens": prepared.keys[-1].shape[1],
        "identity": row.identity,
    }
    if as_json:
        print(json.dumps(result))
    else:
        print(result["answer"])
        print(
            f"[{row.name}: first token after {result['ttft_s']} s, of which loading the cache {result['load_s']} s; "
            f"{result['kv_tokens']} tokens cached]"
        )
    return 0


def open_checkpoint(manifest: Manifest, path: str | None = None) -> Checkpoint:
    """The checkpoint that made an artifact, or the one at `path` if it is the same.

    Raises:
        ModelError: it differs from the recipe, so that its answers would be wrong.
    """
    provenance, recipe = manifest.facts.details["provenance"], manifest.recipe["model"]
    settings = ModelConfig(path=path or provenance["model"], revision=provenance["commit"], dtype=recipe["dtype"])
    checkpoint = Checkpoint.open(settings)
    unlike = differences(recipe, {**checkpoint.digests, "dtype": settings.dtype})
    if unlike:
        names = ", ".join(d.path for d in unlike)
        raise ModelError(
            f"checkpoint {checkpoint.name} is not the one that made this cache: its {names} differ; "
            f"give the right one with --model, or index {manifest.source.uri} again"
        )
    return checkpoint


def command() -> None:
    """Entry point."""
    run(ask=ask)


if __name__ == "__main__":
    command()
