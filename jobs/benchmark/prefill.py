"""Vision tower, merge and prefill of one video at a real model's shape: all tokens, and reduced ones.

A shape is a real architecture with random weights, so no checkpoint is needed; features are made to resemble video
(smooth in space, drifting in time), so that the merge has something to decide.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from jobs.benchmark.timing import Timing, measure, show
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.errors import ConfigError
from sttm.merging import MergeConfig, merge
from sttm.models.base import Family, Prompt, VideoInputs
from sttm.models.language_model import LanguageModel
from sttm.models.shapes import SHAPES, build_shape

PREFIX_TOKENS = 24  # text before the video, as a chat template makes it


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
    inputs, prompt = sample_video(model, family, frames)
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


def sample_video(model: Any, family: Family, frames: int) -> tuple[VideoInputs, Prompt]:
    """Pixels for the vision tower, and a prompt whose visual tokens resemble video."""
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 392, 392, 3), dtype=np.uint8)
    inputs = family.preprocess(pixels, np.arange(frames, dtype=np.float64))
    embedding = model.get_input_embeddings().weight
    t, h, w = inputs.grid
    visual = video_like(t, h, w, embedding.shape[1], embedding.device) * embedding.float().std()
    length = PREFIX_TOKENS + inputs.tokens
    ids = torch.randint(0, 500, (length,), device=embedding.device)
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


def _show_prefill(report: dict[str, Any], rows: list[PrefillRow]) -> None:
    show([asdict(row) for row in rows])
    print(
        f"{report['shape']}, {report['frames']} frames, {report['device']}: vision {report['vision_s'] * 1e3:.1f} ms, "
        f"merge {report['merge_s'] * 1e3:.2f} ms and {report['merge_extra_bytes'] / 1e6:.0f} MB beside features of "
        f"{report['feature_bytes'] / 1e6:.0f} MB, matrix products at {report['matmul_tflops_per_s']} TFLOP/s"
    )
