"""Benchmarks: each prints a table and ends in one JSON line. Absolute times mean something on an idle machine only.

    python -m jobs.bench prefill --shape llava-video-7b     # vision, merge and prefill: full, 50 %, 30 % of the tokens
    python -m jobs.bench store --store URL                  # writing and reading a KV cache against a raw copy
    python -m jobs.bench schemes                            # what each KV scheme loses, on the built-in model

A shape is a real architecture with random weights, so no checkpoint is needed; features are made to resemble video
(smooth in space, drifting in time), so that the merge has something to decide.
"""

import json
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jobs.command import run
from jobs.config import JobConfig
from sttm.config import load_config
from sttm.engine.answer import ready
from sttm.engine.fidelity import Certificate, certify
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.errors import ConfigError
from sttm.kv_cache import KVCache
from sttm.merging import MergeConfig, merge
from sttm.models.base import Family, Prompt, VideoInputs
from sttm.models.checkpoint import Checkpoint
from sttm.models.language_model import LanguageModel
from sttm.models.shapes import SHAPES, build_shape
from sttm.store.kv import ReadBuffer, decode_kv, encode_kv, read_kv
from sttm.store.scheme import SCHEMES
from sttm.store.storage import Storage
from sttm.synthetic import HELD_OUT_SEED, questions, render, sample_scenes

PREFIX_TOKENS = 24  # text before the video, as a chat template makes it


@dataclass(frozen=True)
class Timing:
    """Median seconds of a step, and the most memory it took beyond what was held before (0 where unknown)."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class PrefillRow:
    """One measured prefill. `speed_up` is against all tokens; `end_to_end_speed_up` has the vision tower in it."""

    merge_layer: int
    budget: float
    tokens: int
    prefill_s: float
    merge_s: float
    peak_gb: float
    tflops_per_s: float
    speed_up: float
    end_to_end_speed_up: float


def bench_prefill(
    shape: Annotated[str, typer.Option(help=", ".join(SHAPES))] = "llava-video-7b",
    frames: Annotated[int, typer.Option(min=1, help="sampled frames")] = 128,
    budgets: Annotated[str, typer.Option(help="shares of the tokens to keep")] = "0.5,0.3",
    merge_layers: Annotated[str, typer.Option(help="decoder layers to merge before")] = "0,2",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Time vision tower, merge and prefill of one video."""
    if shape not in SHAPES:
        raise ConfigError(f"no shape {shape!r}; known: {', '.join(SHAPES)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, family = build_shape(shape, device)
    inputs, prompt = _video(model, family, frames)
    clock = partial(measure, device=device, repeats=repeats)
    vision = clock(lambda: family.encode(model, inputs))
    rows: list[PrefillRow] = []
    for layer in map(int, merge_layers.split(",")):
        for budget in (1.0, *map(float, budgets.split(","))):
            full = next((row for row in rows if row.budget == 1.0), None)
            if budget < 1.0 or full is None:
                rows.append(_prefill_row(clock, model, prompt, layer, budget, vision.seconds, full))
    features = prompt.embeds[prompt.visual].view(*prompt.grid, -1)
    alone = clock(lambda: merge(features, MergeConfig(budget=0.3)))
    report = {
        "bench": "prefill",
        "shape": shape,
        "frames": frames,
        "grid": list(prompt.grid),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "matmul_tflops_per_s": round(_matmul_ceiling(device), 1),
        "vision_s": vision.seconds,
        "merge_s": alone.seconds,
        "merge_extra_bytes": alone.peak_bytes,
        "feature_bytes": features.nbytes,
        "rows": [asdict(row) for row in rows],
    }
    _show_prefill(report, rows)
    print(json.dumps(report))


def bench_store(
    store: Annotated[str, typer.Option(help="folder or URL to write to; what is written is deleted again")],
    tokens: Annotated[int, typer.Option(min=1, help="reduced tokens of a 28-layer, 4x128 cache")] = 2048,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Time writing and reading a KV cache against a raw copy of as many bytes to and from the same storage."""
    storage, key = Storage(store), f"bench/{uuid.uuid4().hex}"
    cache, buffer = _random_cache(tokens), ReadBuffer()
    rows = []
    for scheme in ("exact", "int8", "int4"):
        packed = encode_kv(cache, scheme)
        raw = bytes(len(packed.data))
        steps: dict[str, Callable[[], object]] = {
            "pack": partial(encode_kv, cache, scheme),
            "write": partial(storage.put, key, packed.data),
            "read_raw": partial(storage.read, key),
            "read": partial(read_kv, storage, key, packed.header_digest, len(packed.data), buffer=buffer),
            "write_raw": partial(storage.put, f"{key}-raw", raw),
        }
        seconds = {name: measure(step, torch.device("cpu"), repeats).seconds for name, step in steps.items()}
        rows.append(
            {"scheme": scheme, "bytes": len(raw)}
            | {f"{name}_gb_per_s": round(len(raw) / 1e9 / s, 3) for name, s in seconds.items()}
        )
    for name in (key, f"{key}-raw"):
        storage.delete(name)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    print(json.dumps({"bench": "store", "store": storage.url, "tokens": tokens, "rows": rows}))


def bench_schemes(
    clips: Annotated[int, typer.Option(min=1, help="held-out synthetic clips")] = 16,
    config: Annotated[str, typer.Option(help="YAML settings")] = "configs/tiny.yaml",
) -> None:
    """Compare every KV scheme with the live cache: the clips' own questions, and keys with a bias like Qwen2's."""
    settings = load_config(JobConfig, config)
    checkpoint = Checkpoint.open(settings.model)
    family, model = checkpoint.family(), checkpoint.load_model("cpu")
    language_model = LanguageModel.of(model)
    found: dict[str, list[Certificate]] = {scheme: [] for scheme in SCHEMES}
    sizes: dict[str, int] = dict.fromkeys(SCHEMES, 0)
    for scene in sample_scenes(seed=HELD_OUT_SEED, count=clips):
        frames = render([scene]).numpy()[0]
        inputs = family.preprocess(frames, np.arange(len(frames)) / 2.0)
        cache = prefill(language_model, family.prompt(model, inputs), settings.merge, settings.prefill).cache
        live, probes = ready(language_model, cache), [family.question_ids(q.text) for q in questions(scene)]
        for scheme in SCHEMES:
            packed = encode_kv(cache, scheme)
            stored = ready(language_model, decode_kv(packed.data))
            found[scheme].append(certify(language_model, live, stored, probes, tokens=1))
            sizes[scheme] += len(packed.data)
    rows = []
    for scheme, certificates in found.items():
        compared = sum(c.compared for c in certificates)
        rows.append(
            {
                "scheme": scheme,
                "bytes_per_clip": sizes[scheme] // clips,
                "kl_mean": sum(c.kl_mean * c.compared for c in certificates) / compared,
                "kl_max": max(c.kl_max for c in certificates),
                "top1_agreement": sum(c.top1_agreement * c.compared for c in certificates) / compared,
                "questions": compared,
                "biased_keys_attention_kl": _biased_attention_kl(scheme),
            }
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=140).print(table)
    print(json.dumps({"bench": "schemes", "clips": clips, "rows": rows}))


def _biased_attention_kl(scheme: str) -> float:
    """Mean KL, nats, of attention over stored keys from attention over the keys themselves, before RoPE.

    Some channels carry a constant of a hundred and more, as the key projections of Qwen2 give them.
    """
    g = torch.Generator().manual_seed(0)
    cache = _random_cache(1024, layers=1)
    bias = torch.zeros(128)
    bias[::16] = torch.tensor([180.0, -90.0, 60.0, -140.0, 30.0, 110.0, -45.0, 75.0])
    keys = (cache.keys[0].float() + bias).bfloat16()
    stored = decode_kv(encode_kv(replace(cache, keys=(keys,)), scheme).data).keys[0]
    query = torch.randn(4, 64, 128, generator=g) * (bias == 0)  # as trained models: queries avoid the biased channels
    logs = [(query @ k.float().mT / 128**0.5).log_softmax(-1) for k in (keys, stored)]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


def measure(step: Callable[[], object], device: torch.device, repeats: int) -> Timing:
    """Run a step twice to warm up, then time it; on a GPU the clock stops when the GPU has."""
    cuda = device.type == "cuda"
    for _ in range(2):
        step()
    held = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Timing(statistics.median(seconds), torch.cuda.max_memory_allocated() - held if cuda else 0)


def _video(model: Any, family: Family, frames: int) -> tuple[VideoInputs, Prompt]:
    """Pixels for the vision tower, and a prompt whose visual tokens resemble video."""
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 392, 392, 3), dtype=np.uint8)
    inputs = family.preprocess(pixels, np.arange(frames, dtype=np.float64))
    embedding = model.get_input_embeddings().weight
    t, h, w = inputs.grid
    visual = video_like(t, h, w, embedding.shape[1], embedding.device) * embedding.float().std()
    length = PREFIX_TOKENS + inputs.tokens
    ids = torch.randint(0, 1000, (length,), device=embedding.device)
    embeds = embedding[ids]
    places = torch.arange(PREFIX_TOKENS, length, device=embedding.device)
    embeds[places] = visual.flatten(0, 2).to(embeds)
    positions = torch.arange(length, device=embedding.device).expand(3 if _has_mrope(model) else 1, -1)
    return inputs, Prompt(ids, embeds, positions, length, places, inputs.grid, torch.from_numpy(inputs.frame_seconds))


def video_like(T: int, H: int, W: int, C: int, device: torch.device) -> Tensor:
    """float32 [T, H, W, C] of unit variance: a coarse picture, smooth in space, that drifts, with fine grain."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    coarse = normal(C, max(2, T // 8), 4, 4)
    smooth = torch.nn.functional.interpolate(coarse[None], size=(T, H, W), mode="trilinear", align_corners=True)[0]
    return smooth.permute(1, 2, 3, 0) / smooth.std() + 0.5 * normal(T, H, W, C)


def _prefill_row(
    clock: Callable[[Callable[[], object]], Timing],
    model: Any,
    prompt: Prompt,
    layer: int,
    budget: float,
    vision_s: float,
    full: PrefillRow | None,
) -> PrefillRow:
    language_model = LanguageModel.of(model)
    merging = MergeConfig(method="none") if budget == 1.0 else MergeConfig(budget=budget)
    result = prefill(language_model, prompt, merging, PrefillConfig(merge_layer=layer))
    tokens = result.cache.tokens[1]
    del result
    timing = clock(lambda: prefill(language_model, prompt, merging, PrefillConfig(merge_layer=layer)))
    features = prompt.embeds[prompt.visual].view(*prompt.grid, -1)
    merge_s = 0.0 if budget == 1.0 else clock(lambda: merge(features, merging)).seconds
    whole = full.prefill_s if full else timing.seconds
    flops = _flops(language_model, len(prompt.ids), tokens, layer)
    return PrefillRow(
        layer,
        budget,
        tokens,
        round(timing.seconds, 5),
        round(merge_s, 6),
        round(timing.peak_bytes / 1e9, 3),
        round(flops / timing.seconds / 1e12, 1),
        round(whole / timing.seconds, 3),
        round((whole + vision_s) / (timing.seconds + vision_s), 3),
    )


def _flops(model: LanguageModel, before: int, after: int, merge_layer: int) -> float:
    """Products of one prefill: 2 a weight and token, and causal attention."""
    layers = model.text.layers
    weights = sum(p.numel() for p in layers[0].parameters())
    width = model.text.config.num_attention_heads * layers[0].self_attn.head_dim
    lengths = [before] * merge_layer + [after] * (len(layers) - merge_layer)
    return float(sum(2 * weights * n + 2 * width * n * n for n in lengths))


def _matmul_ceiling(device: torch.device, size: int = 8192) -> float:
    """TFLOP/s of one large bfloat16 product (float32 and small on a CPU)."""
    size, dtype = (size, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / measure(lambda: a @ b, device, 5).seconds / 1e12


def _has_mrope(model: Any) -> bool:
    return hasattr(model.model.language_model.rotary_emb, "mrope_section")


def _random_cache(tokens: int, layers: int = 28, heads: int = 4, dim: int = 128) -> KVCache:
    g = torch.Generator().manual_seed(0)

    def numbers() -> tuple[Tensor, ...]:
        return tuple(torch.randn(heads, tokens, dim, generator=g).bfloat16() for _ in range(layers))

    places = torch.arange(tokens, dtype=torch.int32)
    side = torch.zeros(tokens, 5, dtype=torch.int32)
    side[:, 0] = places
    side[:, 3:] = 1
    return KVCache(
        keys=numbers(),
        values=numbers(),
        merge_layer=0,
        prefix_ids=places,
        positions=places[None],
        reduced_positions=places[None],
        next_position=tokens,
        reduced_next_position=tokens,
        visual=places,
        boxes=side,
        patches=torch.ones(tokens, dtype=torch.int32),
        multiplicity=torch.ones(tokens, dtype=torch.int32),
        grid=(tokens, 1, 1),
        frame_seconds=torch.arange(tokens, dtype=torch.float64),
    )


def _show_prefill(report: dict[str, Any], rows: list[PrefillRow]) -> None:
    console = Console(width=140)
    table = Table(*asdict(rows[0]))
    for row in rows:
        table.add_row(*map(str, asdict(row).values()))
    console.print(table)
    console.print(
        f"{report['shape']}, {report['frames']} frames, {report['device']}: vision {report['vision_s'] * 1e3:.1f} ms, "
        f"merge {report['merge_s'] * 1e3:.2f} ms and {report['merge_extra_bytes'] / 1e6:.0f} MB beside features of "
        f"{report['feature_bytes'] / 1e6:.0f} MB, matrix products at {report['matmul_tflops_per_s']} TFLOP/s"
    )


def command() -> None:
    """Entry point."""
    run(prefill=bench_prefill, store=bench_store, schemes=bench_schemes)


if __name__ == "__main__":
    command()
