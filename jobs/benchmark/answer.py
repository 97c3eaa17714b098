"""Time answers about a stored video: the first token from each cache tier, many questions at once, and a decode step.

The model has a real architecture with random weights, or is the built-in model; question tokens are random. For
comparison the time without a store is measured too: decoding the video from a file (if a decoder is installed), running
the vision tower, and prefilling with and without the merge.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from jobs.benchmark.decode_step import StepRow, decode_steps
from jobs.benchmark.film import FILMS, describe, write_films
from jobs.benchmark.prefill import sample_video
from jobs.benchmark.shapes import SHAPES, build_shape
from jobs.benchmark.timing import Timing, measure, show
from sttm.engine.answer import Continuation, answer
from sttm.engine.prefill import PrefillConfig, Prefilled, prefill
from sttm.engine.ready_video import ReadyVideo, ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ConfigError
from sttm.merging import MergeConfig
from sttm.models.base import Family, Prompt
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.models.video_inputs import VideoInputs
from sttm.store.artifact import Source
from sttm.store.facts import Facts
from sttm.store.key import make_recipe
from sttm.store.kv.file import encode_kv
from sttm.store.kv.read_buffer import ReadBuffer
from sttm.store.store import Store
from sttm.store.tokens import write_tokens
from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip
from sttm.video.decode import VideoConfig, read_video

_SEED = 0
Clock = Callable[[Callable[[], object]], Timing]


@dataclass(frozen=True)
class _Setup:
    """What every measurement needs.

    Attributes:
        model: the whole model.
        family: the adapter of the model.
        text: the language model inside `model`.
        inputs: a preprocessed video.
        prompt: the prefix of this video.
        merging: settings of the merge.
        config: settings of the prefill.
        questions: token ids of each question.
        clock: times a step.
    """

    model: Any
    family: Family
    text: LanguageModel
    inputs: VideoInputs
    prompt: Prompt
    merging: MergeConfig
    config: PrefillConfig
    questions: list[list[int]]
    clock: Clock


def bench_answer(
    shape: Annotated[
        str | None, typer.Option(help=f"architecture: {', '.join(SHAPES)}; default: the built-in model")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="sampled frames; default: 128, or 16 for the built-in model")
    ] = None,
    budget: Annotated[float, typer.Option(help="share of the tokens to keep")] = 0.3,
    merge_layer: Annotated[int, typer.Option(min=0, help="the decoder layer before which tokens are merged")] = 2,
    video: Annotated[
        Path | None,
        typer.Option(help="video file to decode; default: two minutes of 720p, which are generated"),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="folder for the store; default: a temporary folder")] = None,
    questions: Annotated[int, typer.Option(min=1, help="number of questions asked at once")] = 64,
    question_tokens: Annotated[int, typer.Option(min=1, help="tokens of a question")] = 32,
    answer_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="how often each step is timed; the median counts")] = 5,
) -> None:
    """Time first tokens from every cache tier, questions at once and one by one, and a decode step.

    The weights are random, so no checkpoint is needed; without --shape the built-in model is measured. Examples:

        python -m jobs.bench answer
        python -m jobs.bench answer --shape llava-video-7b --questions 64
    """
    if shape is not None and shape not in SHAPES:
        raise ConfigError(f"no shape is named {shape!r}; choose one of {', '.join(SHAPES)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames = frames or (128 if shape else 16)
    model, family = _built(shape, device)
    inputs, prompt = sample_video(model, family, frames)
    clock = partial(measure, device=device, repeats=repeats)
    words = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, words, (questions, question_tokens), generator=torch.Generator().manual_seed(_SEED)).tolist()
    merging, config = MergeConfig(budget=budget), PrefillConfig(merge_layer=merge_layer)
    setup = _Setup(model, family, LanguageModel.of(model), inputs, prompt, merging, config, ids, clock)
    with tempfile.TemporaryDirectory() as folder:
        again = _reading_again(setup, video or _made_video(Path(folder), shape), frames)
        first, ready_video = _first_tokens(setup, Store.open(store or Path(folder) / "store", create=True))
    together = _together(setup, ready_video, answer_tokens)
    steps = decode_steps(setup.text, ready_video, ids, tokens=max(32, answer_tokens))
    report = {
        "bench": "answer",
        "shape": shape or "built-in",
        "frames": frames,
        "tokens": [len(prompt.ids), ready_video.keys[-1].shape[1]],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "again": again,
        "first_token": first,
        "speed_up": _speed_ups(again, first),
        "together": together,
        "steps": [step.__dict__ for step in steps],
    }
    _show(report, steps)
    print(json.dumps(report))


def _built(shape: str | None, device: torch.device) -> tuple[Any, Family]:
    if shape is not None:
        return build_shape(shape, device)
    checkpoint = Checkpoint.open(ModelConfig(path="tiny", dtype="bfloat16" if device.type == "cuda" else "float32"))
    return checkpoint.load_model(str(device)), checkpoint.family()


def _reading_again(setup: _Setup, video: Path | None, frames: int) -> dict[str, float | str | None]:
    """Seconds of each step from the video file to the first token if there is no store."""
    question = setup.questions[:1]

    def ask(merging: MergeConfig) -> None:
        cache = prefill(setup.text, setup.prompt, merging, setup.config).cache
        Continuation(setup.text, ready(setup.text, cache), question, 0).start().argmax(-1).tolist()

    decode_s, why = (None, "no decoder is installed") if video is None else _decoding(setup, video, frames)
    return {
        "decode_s": decode_s,
        "decode_of": why,
        "vision_s": setup.clock(lambda: setup.family.encode(setup.model, setup.inputs)).seconds,
        "merged_prefill_and_question_s": setup.clock(lambda: ask(setup.merging)).seconds,
        "full_prefill_and_question_s": setup.clock(lambda: ask(MergeConfig(method="none"))).seconds,
    }


def _decoding(setup: _Setup, video: Path, frames: int) -> tuple[float | None, str]:
    """Time sampling, decoding and resizing the frames of a file.

    Returns:
        Seconds and a description of the video; or None and the import error if no decoder is installed.
    """

    try:
        started = time.perf_counter()
        sampling = VideoConfig(fps=2.0, max_frames=frames)
        found = read_video(str(video), sampling, resizer=setup.family.resizing)
        setup.family.inputs(found.pixels, found.seconds)
        return time.perf_counter() - started, describe(video)
    except ImportError as error:
        return None, str(error)


def _made_video(folder: Path, shape: str | None) -> Path | None:
    """Write two minutes of 720p for a real shape, or a small clip for the built-in model; None if PyAV is missing."""
    path = folder / "video.mp4"
    try:
        if shape is None:
            frames = render(sample_scenes(seed=_SEED, count=1, frames=16, size=392)).numpy()[0]
            path.write_bytes(encode_clip(frames.repeat(16, axis=0), fps=8))
        else:
            write_films({path: FILMS["720p24-h264"]})
    except ImportError:
        return None
    return path


def _first_tokens(setup: _Setup, store: Store) -> tuple[dict[str, float], ReadyVideo]:
    """Time the first token from each cache tier, and the steps that lead to it.

    Returns:
        Seconds by name, with the size of the cache file as `bytes`; and the loaded video.
    """
    text, question, buffer = setup.text, setup.questions[:1], ReadBuffer()
    result = prefill(text, setup.prompt, setup.merging, setup.config)
    identity, path = _published(store, result)
    cache = store.load_kv(identity, text.device, buffer)
    video = ready(text, cache)
    host = video.to("cpu", pinned=text.device.type == "cuda")

    def ask(video: ReadyVideo) -> None:
        Continuation(text, video, question, 0).start().argmax(-1).tolist()

    def from_store() -> None:
        ask(ready(text, store.load_kv(identity, text.device, buffer)))

    def from_disk() -> None:
        _forget(path)
        from_store()

    steps: dict[str, Callable[[], object]] = {
        "disk_s": from_disk,
        "store_s": from_store,
        "host_s": lambda: ask(host.to(text.device)),
        "device_s": lambda: ask(video),
        "load_kv_s": lambda: store.load_kv(identity, text.device, buffer),
        "manifest_s": lambda: store.manifest(identity),
        "rotate_s": lambda: ready(text, cache),
    }
    return {name: setup.clock(step).seconds for name, step in steps.items()} | {"bytes": path.stat().st_size}, video


def _published(store: Store, result: Prefilled) -> tuple[str, Path]:
    """Store an artifact and return its identity and the path of its KV file."""
    cache, merged = result.cache, result.merged
    features = merged.features.cpu()
    tokens = write_tokens(cache.boxes, cache.patches, merged.index.cpu(), cache.frame_seconds, features, cache.grid)
    facts = Facts(len(cache.prefix_ids), len(cache.patches))
    recipe = make_recipe(model={"id": "bench"}, merge={}, store={"kv_scheme": "int8"})
    source = Source("file:///bench.mp4", "bench", "bench.mp4", 0, "0")
    row = store.publish(recipe, "bench", source, encode_kv(cache, "int8"), tokens, facts)
    return row.identity, Path(store.storage.url.removeprefix("file://")) / store.manifest(row.identity).kv.key


def _forget(path: Path) -> None:
    """Drop a file from the page cache, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _together(setup: _Setup, video: ReadyVideo, answer_tokens: int) -> dict[str, float]:
    """Compare all questions in one batch with one question at a time.

    Peak memory counts the language model, the video, and what the questions take beyond these.
    """
    text, questions, sampling = setup.text, setup.questions, SamplingConfig(max_tokens=answer_tokens)

    def ask(batch: Sequence[Sequence[int]]) -> list[list[int]]:
        return answer(text, video, batch, frozenset(), sampling)

    alone = questions[: min(16, len(questions))]  # the rate of single questions does not depend on their number
    timings = setup.clock(lambda: [ask([one]) for one in alone]), setup.clock(lambda: ask(questions))
    rates = [len(batch) / timing.seconds for batch, timing in zip((alone, questions), timings, strict=True)]
    held = video.size_bytes + sum(p.nbytes for part in (text.text, text.head) for p in part.parameters())
    peaks = [held + timing.peak_bytes for timing in timings]
    return {
        "questions": len(questions),
        "question_tokens": len(questions[0]),
        "answer_tokens": answer_tokens,
        "one_at_a_time_questions_per_s": rates[0],
        "together_questions_per_s": rates[1],
        "one_at_a_time_tokens_per_s": rates[0] * answer_tokens,
        "together_tokens_per_s": rates[1] * answer_tokens,
        "throughput_ratio": rates[1] / rates[0],
        "one_at_a_time_peak_bytes": peaks[0],
        "together_peak_bytes": peaks[1],
        "memory_ratio": peaks[1] / peaks[0],
    }


def _speed_ups(again: dict[str, Any], first: dict[str, float]) -> dict[str, float]:
    """Time to the first token without a store, divided by the time from each cache tier.

    The time without a store contains a prefill with the merge (`merged`) or with all tokens (`full`), and once it
    contains decoding and once not. If no decoder is installed, only the ratios without decoding are returned.
    """
    seen = {"_without_decoding": again["vision_s"]}
    if again["decode_s"] is not None:
        seen[""] = again["decode_s"] + again["vision_s"]
    return {
        f"{tier}_over_{kind}{how}": (seconds + again[f"{kind}_prefill_and_question_s"]) / first[f"{tier}_s"]
        for tier in ("store", "disk", "host", "device")
        for kind in ("merged", "full")
        for how, seconds in seen.items()
    }


def _show(report: dict[str, Any], steps: list[StepRow]) -> None:
    rows = {
        name: value for part in ("again", "first_token", "speed_up", "together") for name, value in report[part].items()
    }
    show([{"what": name, "value": value} for name, value in rows.items()])
    show([step.__dict__ for step in steps])
