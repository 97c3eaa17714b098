"""Time vision tower, merge and prefill of one video, with all tokens and with fewer tokens.

The model has a real architecture with random weights, so that no checkpoint is needed, or comes from a checkpoint. The
features that are merged resemble video, because random features would give the merge nothing to decide: they are smooth
in space and drift over time.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from torch import Tensor

from jobs.benchmark.profile import profiled, seconds_by_sdpa_kernel
from jobs.benchmark.shapes import SHAPES, build_shape
from jobs.benchmark.timing import Timing, measure, show
from sttm.engine.prefill import PrefillConfig, Prefilled, prefill
from sttm.errors import ConfigError
from sttm.merging import MergeConfig, merge
from sttm.models.base import Family, Prompt
from sttm.models.checkpoint import Checkpoint, Dtype, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.models.placement import first_gpus
from sttm.models.video_inputs import VideoInputs

PREFIX_TOKENS = 24  # text tokens before the video, about as many as a chat template makes


@dataclass(frozen=True)
class PrefillRow:
    """One measured prefill.

    Attributes:
        merge_layer: the decoder layer before which tokens are merged.
        budget: share of the visual tokens that is kept.
        proportional: whether attention was proportional to the cells that a token stands for.
        tokens: tokens in the last layer.
        prefill_s: seconds of the prefill, including the merge.
        merge_s: seconds of the merge alone.
        peak_gb: memory that the prefill took beyond the model and its inputs.
        tflops_per_s: matrix products of the prefill, per second.
        speed_up: prefill time with all tokens, divided by this prefill time.
        end_to_end_speed_up: ratio of these times with the time of the vision tower added to both.
    """

    merge_layer: int
    budget: float
    proportional: bool
    tokens: int
    prefill_s: float
    merge_s: float
    peak_gb: float
    tflops_per_s: float
    speed_up: float
    end_to_end_speed_up: float


def bench_prefill(
    shape: Annotated[str, typer.Option(help=f"architecture: {', '.join(SHAPES)}")] = "llava-video-7b",
    model: Annotated[
        Path | None, typer.Option(help="folder of a checkpoint to measure in place of --shape; default: none")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"arithmetic: {', '.join(get_args(Dtype))}")] = "bfloat16",
    frames: Annotated[int, typer.Option(min=1, help="sampled frames")] = 128,
    budgets: Annotated[str, typer.Option(help="shares of the tokens to keep, separated by commas")] = "0.5,0.3",
    merge_layers: Annotated[
        str, typer.Option(help="decoder layers before which tokens are merged, separated by commas")
    ] = "0,2",
    repeats: Annotated[int, typer.Option(min=1, help="how often each step is timed; the median counts")] = 5,
    gpus_per_model: Annotated[int, typer.Option(min=1, help="GPUs over which the layers are spread")] = 1,
    proportional: Annotated[bool, typer.Option(help="also measure with proportional attention")] = False,
    profile: Annotated[bool, typer.Option(help="list the slowest kernels of vision tower and last row")] = False,
) -> None:
    """Time vision tower, merge and prefill of one video, with all tokens and with fewer tokens.

    The weights are random, so no checkpoint is needed; --model measures a checkpoint. Examples:

        python -m jobs.bench prefill --shape qwen2-vl-7b --budgets 0.5,0.3 --merge-layers 0,2
        python -m jobs.bench prefill --shape qwen2-vl-7b --dtype fp8
        python -m jobs.bench prefill --shape llava-video-72b --gpus-per-model 2 --merge-layers 0 --repeats 2
    """
    devices = first_gpus(gpus_per_model)
    if dtype not in get_args(Dtype):
        raise ConfigError(f"--dtype {dtype!r} is unknown; choose one of {', '.join(get_args(Dtype))}")
    settings = ModelConfig.model_validate({"path": str(model) if model else None, "dtype": dtype})
    whole, family = _open(settings, devices) if model else _build(shape, settings, devices)
    inputs, prompt = sample_video(whole, family, frames)
    if devices[0].type == "cuda":
        inputs = inputs.page_locked()  # the index job does the same
    clock = partial(measure, device=devices, repeats=repeats)
    vision = _inference(lambda: family.encode(whole, inputs))
    bench = _Bench(clock, LanguageModel.of(whole), prompt, clock(vision).seconds)
    rows = bench.rows([int(x) for x in merge_layers.split(",")], [float(x) for x in budgets.split(",")], proportional)
    report = {"shape": model.name if model else shape, "dtype": dtype, "frames": frames, **bench.report(rows, devices)}
    _show_prefill(report, rows)
    if profile:
        report["vision_s_by_sdpa_kernel"] = seconds_by_sdpa_kernel(lambda: clock(vision).seconds)
        last = rows[-1]
        _show_profile("vision tower", vision, devices)
        _show_profile("last row", bench.step(last.merge_layer, last.budget, last.proportional), devices)
    print(json.dumps(report))


def _build(shape: str, settings: ModelConfig, devices: tuple[torch.device, ...]) -> tuple[Any, Family]:
    if shape not in SHAPES:
        raise ConfigError(f"no shape is named {shape!r}; choose one of {', '.join(SHAPES)}")
    return build_shape(shape, devices, settings.torch_dtype, settings.is_fp8)


def _open(settings: ModelConfig, devices: tuple[torch.device, ...]) -> tuple[Any, Family]:
    checkpoint = Checkpoint.open(settings)
    return checkpoint.load_model(devices), checkpoint.family()


def _show_profile(name: str, step: Callable[[], object], devices: tuple[torch.device, ...]) -> None:
    print(f"\n{name}: where the time goes")
    show([asdict(spent) for spent in profiled(step, devices)])


def _inference(step: Callable[[], object]) -> Callable[[], object]:
    return torch.inference_mode()(step)


def sample_video(model: Any, family: Family, frames: int) -> tuple[VideoInputs, Prompt]:
    """Make random pixels for the vision tower, and a prompt whose visual tokens resemble a video's."""
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 392, 392, 3), dtype=np.uint8)
    inputs = family.preprocess(pixels, np.arange(frames, dtype=np.float64))
    embedding = model.get_input_embeddings().weight
    t, h, w = inputs.grid
    visual = video_like(t, h, w, embedding.shape[1], embedding.device) * embedding.float().std()
    length = PREFIX_TOKENS + inputs.tokens
    ids = torch.randint(0, min(500, len(embedding)), (length,), device=embedding.device)
    embeds = embedding[ids]
    places = torch.arange(PREFIX_TOKENS, length, device=embedding.device)
    embeds[places] = visual.flatten(0, 2).to(embeds)
    positions = torch.arange(length, device=embedding.device).expand(3 if _has_mrope(model) else 1, -1)
    return inputs, Prompt(ids, embeds, positions, length, places, inputs.grid, torch.from_numpy(inputs.frame_seconds))


def video_like(T: int, H: int, W: int, C: int, device: torch.device) -> Tensor:
    """Make features float32 [T, H, W, C]: a picture, smooth in space, that drifts over time, with fine grain on top."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    coarse = normal(C, max(2, T // 8), 4, 4)
    smooth = torch.nn.functional.interpolate(coarse[None], size=(T, H, W), mode="trilinear", align_corners=True)[0]
    return smooth.permute(1, 2, 3, 0) / smooth.std() + 0.5 * normal(T, H, W, C)


@dataclass(frozen=True)
class _Bench:
    """Measures prefills of one prompt.

    Attributes:
        clock: times a step.
        model: the language model.
        prompt: the prompt to prefill.
        vision_s: seconds that the vision tower takes.
    """

    clock: Callable[[Callable[[], object]], Timing]
    model: LanguageModel
    prompt: Prompt
    vision_s: float

    def rows(self, merge_layers: list[int], budgets: list[float], proportional: bool) -> list[PrefillRow]:
        """Measure all tokens first, then every merge layer and budget, if asked also with proportional attention."""
        rows = [self._row(merge_layers[0], 1.0, False, None)]
        for layer in merge_layers:
            for budget in budgets:
                for counts in (False, True) if proportional else (False,):
                    rows.append(self._row(layer, budget, counts, rows[0]))
        return rows

    def report(self, rows: list[PrefillRow], devices: tuple[torch.device, ...]) -> dict[str, Any]:
        """The rows, the device, and measurements that belong to no row."""
        features = self.prompt.embeds[self.prompt.visual].view(*self.prompt.grid, -1)
        alone = self.clock(lambda: merge(features, MergeConfig(budget=0.3)))
        return {
            "bench": "prefill",
            "grid": list(self.prompt.grid),
            "device": torch.cuda.get_device_name() if devices[0].type == "cuda" else "cpu",
            "gpus_per_model": len(devices),
            "torch": str(torch.__version__),
            "matmul_tflops_per_s": round(_matmul_ceiling(devices[0]), 1),
            "vision_s": self.vision_s,
            "merge_s": alone.seconds,
            "merge_extra_bytes": alone.peak_bytes,
            "feature_bytes": features.nbytes,
            "rows": [asdict(row) for row in rows],
        }

    def step(self, layer: int, budget: float, proportional: bool) -> Callable[[], Prefilled]:
        """A function that runs one prefill and can be called any number of times."""
        config = PrefillConfig(merge_layer=layer, proportional_attention=proportional)
        return lambda: prefill(self.model, self.prompt, _merging(budget), config)

    def _row(self, layer: int, budget: float, proportional: bool, full: PrefillRow | None) -> PrefillRow:
        step, prompt = self.step(layer, budget, proportional), self.prompt
        tokens = step().cache.tokens[1]
        timing = self.clock(step)
        features = prompt.embeds[prompt.visual].view(*prompt.grid, -1)
        merge_s = 0.0 if full is None else self.clock(lambda: merge(features, _merging(budget))).seconds
        whole = full.prefill_s if full else timing.seconds
        flops = _flops(self.model, len(prompt.ids), tokens, layer)
        return PrefillRow(
            layer,
            budget,
            proportional,
            tokens,
            round(timing.seconds, 5),
            round(merge_s, 6),
            round(timing.peak_bytes / 1e9, 3),
            round(flops / timing.seconds / 1e12, 1),
            round(whole / timing.seconds, 3),
            round((whole + self.vision_s) / (timing.seconds + self.vision_s), 3),
        )


def _merging(budget: float) -> MergeConfig:
    return MergeConfig(method="none") if budget == 1.0 else MergeConfig(budget=budget)


def _flops(model: LanguageModel, before: int, after: int, merge_layer: int) -> float:
    """Floating-point operations of one prefill: 2 for each weight and token, plus causal attention.

    The last layer computes keys and values only.
    """
    layers, attention = model.text.layers, model.text.layers[-1].self_attn
    weights = sum(p.numel() for p in layers[0].parameters())
    width = model.text.config.num_attention_heads * attention.head_dim
    lengths = [before] * merge_layer + [after] * (len(layers) - 1 - merge_layer)
    last = 2 * after * (attention.k_proj.weight.numel() + attention.v_proj.weight.numel())
    return float(sum(2 * weights * n + 2 * width * n * n for n in lengths) + last)


def _matmul_ceiling(device: torch.device, size: int = 8192) -> float:
    """TFLOP/s of one large matrix product in bfloat16 (on a CPU, a small one in float32)."""
    size, dtype = (size, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / measure(lambda: a @ b, device, 5).seconds / 1e12


def _has_mrope(model: Any) -> bool:
    return hasattr(model.model.language_model.rotary_emb, "mrope_section")


def _show_prefill(report: dict[str, Any], rows: list[PrefillRow]) -> None:
    show([asdict(row) for row in rows])
    print(
        f"{report['shape']}, {report['dtype']}, {report['frames']} frames, {report['device']}: "
        f"vision {report['vision_s'] * 1e3:.1f} ms, "
        f"merge {report['merge_s'] * 1e3:.2f} ms and {report['merge_extra_bytes'] / 1e6:.0f} MB beside features of "
        f"{report['feature_bytes'] / 1e6:.0f} MB, matrix products at {report['matmul_tflops_per_s']} TFLOP/s"
    )
