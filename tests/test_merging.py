"""The merge equals the stored outcomes of the released code and, on any small grid, the plain oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Outcome, merge_slowly
from pydantic import ValidationError

from sttm.errors import ConfigError
from sttm.merging import MergeConfig, Merged, merge
from sttm.merging.grid import make_grid
from sttm.merging.merged import weighted_sum
from sttm.merging.quadtree import cover_cosine, nodes_of
from sttm.merging.similarity import measure
from sttm.merging.sttm import _assemble, _decide
from sttm.merging.temporal import best_overlaps

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "merge_golden.json").read_text())
PROPERTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def video(T: int, H: int, W: int, C: int = 16, seed: int = 0, change: float = 0.3) -> torch.Tensor:
    """Features [T, H, W, C] that are smooth in space and drift over time, so both steps have something to merge."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, C, (H + 3) // 4, (W + 3) // 4, generator=g)
    frame = torch.nn.functional.interpolate(coarse, (H, W), mode="nearest")[0].permute(1, 2, 0)
    frames = []
    for _ in range(T):
        frames.append(frame + 0.3 * torch.randn(H, W, C, generator=g))
        moving = (torch.rand(H, W, 1, generator=g) < change).float()
        frame = frame + moving * torch.randn(H, W, C, generator=g)
    return torch.stack(frames)


videos = st.builds(
    video,
    T=st.integers(1, 4),
    H=st.integers(1, 11),
    W=st.integers(1, 11),
    C=st.sampled_from([8, 16]),
    seed=st.integers(0, 10_000),
    change=st.sampled_from([0.0, 0.2, 0.8]),
)
thresholds = st.none() | st.floats(-0.2, 0.98)


def assert_equal(merged: Merged, expected: Outcome, shape: torch.Size) -> None:
    assert merged.boxes.tolist() == [list(box) for box in expected.boxes]
    assert merged.patches.tolist() == expected.patches
    assert merged.survivor.view(shape[:3]).tolist() == [
        [[expected.survivor[t, y, x] for x in range(shape[2])] for y in range(shape[1])] for t in range(shape[0])
    ]
    np.testing.assert_allclose(merged.features.double().numpy(), expected.features, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_reproduces_the_released_code(case: dict) -> None:
    arrays = np.load(DATA / "merge_golden.npz")
    temporal = case["temporal_threshold"]
    config = MergeConfig(
        spatial_threshold=case["spatial_threshold"],
        temporal_threshold=None if temporal == -1.0 else temporal,  # the released code writes "off" as -1
        root_level=case["root_level"],
        variant=case["variant"],
        links="all",
        weighted=case["weighted_average"],
        head_dim=case["head_dim"],
    )
    merged = merge(torch.tensor(arrays[f"{case['name']}/x"]).float(), config)
    assert len(merged) == case["tokens"]
    assert (merged.boxes.numpy() == arrays[f"{case['name']}/boxes"]).all()
    assert (merged.patches.numpy() == arrays[f"{case['name']}/num_patches"]).all()
    np.testing.assert_allclose(merged.features.numpy(), arrays[f"{case['name']}/features"], atol=1e-3)


@settings(PROPERTY, max_examples=100)
@given(
    videos,
    thresholds,
    thresholds,
    st.integers(0, 2),
    st.sampled_from(["best", "all", "reference"]),
    st.booleans(),
    st.booleans(),
)
def test_equals_the_oracle(x, spatial, temporal, root_level, rule, weighted, per_head) -> None:
    check_against_oracle(x, spatial, temporal, root_level, rule, weighted, head_dim=4 if per_head else None)


@pytest.mark.parametrize("shape", [(2, 6, 6), (3, 10, 6), (2, 13, 9)], ids=str)
@pytest.mark.parametrize("rule", ["best", "all", "reference"])
@pytest.mark.parametrize("head_dim", [None, 4])
def test_equals_the_oracle_where_inner_levels_are_odd(shape, rule: str, head_dim: int | None) -> None:
    """These grids have nodes with one, two and four children above level 1, and a root with a single child."""
    for seed, spatial in enumerate([0.5, 0.7, 0.85]):
        check_against_oracle(video(*shape, seed=seed), spatial, 0.6, 0, rule, False, head_dim)


def check_against_oracle(x, spatial, temporal, root_level, rule, weighted, head_dim) -> None:
    variant, best = ("reference", False) if rule == "reference" else ("exact", rule == "best")
    expected = merge_slowly(x.numpy(), spatial, temporal, root_level, variant, best, weighted, head_dim)
    if expected.margin < 1e-5:  # float32 may round such a cosine to the other side of the threshold
        return
    config = MergeConfig(
        spatial_threshold=spatial,
        temporal_threshold=temporal,
        root_level=root_level,
        variant=variant,
        links=None if rule == "reference" else rule,
        weighted=weighted,
        head_dim=head_dim,
    )
    assert_equal(merge(x, config), expected, x.shape)


def test_chunks_of_frames_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, config = video(7, 9, 6), MergeConfig(spatial_threshold=0.7, temporal_threshold=0.6)
    whole = merge(x, config)
    monkeypatch.setattr("sttm.merging.similarity._ELEMENTS_AT_ONCE", {"cpu": 1})
    monkeypatch.setattr("sttm.merging.merged._ELEMENTS_AT_ONCE", 1)
    chunked = merge(x, config)
    assert torch.equal(whole.survivor, chunked.survivor)
    torch.testing.assert_close(whole.features, chunked.features)


def test_of_equal_overlaps_the_top_left_is_joined() -> None:
    x = torch.ones(2, 4, 4, 3)
    x[0, 1, 1] = torch.tensor([1.0, -1.0, 0.0])  # splits one node of frame 0 into cells
    merged = merge(x, MergeConfig(root_level=0, spatial_threshold=0.99, temporal_threshold=0.9))
    later = merged.survivor.view(2, 4, 4)[1]
    assert later[:2, :2].tolist() == [[0, 0], [0, 0]]
    assert merged.boxes[0].tolist() == [0, 0, 0, 1, 1]


def test_a_still_video_becomes_its_first_frame_of_roots() -> None:
    x = video(1, 14, 14).mean((1, 2), keepdim=True).expand(6, 14, 14, -1)
    merged = merge(x, MergeConfig(spatial_threshold=0.9, temporal_threshold=0.9))
    assert merged.boxes[:, 0].tolist() == [0] * 16
    frames = merged.survivor.view(6, 196)
    assert (frames == frames[0]).all()
    torch.testing.assert_close(merged.features, x[0, 0, :1].expand(16, -1))


@PROPERTY
@given(videos, st.floats(-0.2, 0.98), st.floats(-0.2, 0.98))
def test_every_cell_is_in_exactly_one_survivor(x, spatial, temporal) -> None:
    T, H, W, _ = x.shape
    merged = merge(x, MergeConfig(spatial_threshold=spatial, temporal_threshold=temporal))
    assert int(merged.patches.sum()) == T * H * W
    assert torch.equal(merged.survivor.bincount(minlength=len(merged)), merged.patches.long())
    assert merged.index.tolist() == sorted(set(merged.index.tolist()))
    t, y, x0 = merged.boxes[:, :3].long().unbind(1)
    assert torch.equal(merged.index, t * H * W + y * W + x0)
    assert torch.equal(merged.survivor[merged.index], torch.arange(len(merged)))
    total = torch.zeros(len(merged)).index_add_(0, merged.survivor, merged.weights)
    torch.testing.assert_close(total, torch.ones(len(merged)))
    torch.testing.assert_close(merged.apply(x), merged.features)


@PROPERTY
@given(videos, st.floats(-0.2, 0.9), st.floats(-0.2, 0.9), st.floats(0, 0.1))
def test_a_lower_threshold_never_keeps_more(x, spatial, temporal, less) -> None:
    only_spatial = [len(merge(x, MergeConfig(spatial_threshold=s))) for s in (spatial, spatial - less)]
    both = [
        len(merge(x, MergeConfig(spatial_threshold=spatial, temporal_threshold=s))) for s in (temporal, temporal - less)
    ]
    assert only_spatial[0] >= only_spatial[1]
    assert both[0] >= both[1]


@pytest.mark.parametrize("variant", ["exact", "reference"])
def test_without_thresholds_nothing_changes(variant: str) -> None:
    x = video(3, 5, 7)
    merged = merge(x, MergeConfig(variant=variant))
    assert torch.equal(merged.features, x.reshape(-1, x.shape[-1]))
    assert torch.equal(merged.survivor, torch.arange(3 * 5 * 7))
    assert merged.spatial_threshold is merged.temporal_threshold is None


def test_a_step_that_is_off_merges_nothing() -> None:
    x = torch.ones(3, 6, 6, 4)
    assert merge(x, MergeConfig(spatial_threshold=0.5)).boxes[:, 0].unique().tolist() == [0, 1, 2]
    assert merge(x, MergeConfig(temporal_threshold=0.5)).index.tolist() == list(range(36))


def test_half_precision_is_summed_in_float32() -> None:
    """Of 300 equal cells, a running sum in bfloat16 would stop growing at 256."""
    x = torch.full((300, 1, 1, 2), 1.0078125, dtype=torch.bfloat16)
    merged = merge(x, MergeConfig(temporal_threshold=0.9))
    assert merged.features.dtype == torch.bfloat16
    assert merged.features.tolist() == [[1.0078125, 1.0078125]]


@pytest.mark.parametrize("config", [MergeConfig(budget=0.3), MergeConfig(spatial_threshold=-1, temporal_threshold=-1)])
def test_not_a_number_stays_where_it_is(config: MergeConfig) -> None:
    x = video(4, 14, 14)
    x[1, 5, 6, 0] = torch.nan
    merged = merge(x, config)
    assert merged.features.isnan().sum() == 1
    assert int(merged.patches.sum()) == 4 * 14 * 14
    assert merged.boxes[merged.survivor.view(4, 14, 14)[1, 5, 6]].tolist() == [1, 5, 6, 6, 7]


def test_one_decision_applies_to_other_tensors() -> None:
    x = video(3, 6, 6)
    merged = merge(x, MergeConfig(budget=0.3))
    frame = torch.arange(3).repeat_interleave(36)[:, None]
    mean_frame = merged.apply(frame)
    assert mean_frame.dtype == torch.float32
    assert (mean_frame[:, 0] >= merged.boxes[:, 0]).all()
    with pytest.raises(ValueError, match="35 cells"):
        merged.apply(frame[:35])


def test_the_same_video_gives_the_same_bits() -> None:
    x, config = video(5, 10, 9), MergeConfig(budget=0.4)
    first, second = merge(x, config), merge(x, config)
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.survivor, second.survivor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, "greater than 0"),
        ({"budget": 1.5}, "less than or equal to 1"),
        ({"tokens": 0}, "greater than or equal to 1"),
        ({"spatial_threshold": 1.2}, "less than or equal to 1"),
        ({"budget": 0.3, "temporal_threshold": 0.5}, "one or the other"),
        ({"method": "tome"}, "needs budget= or tokens="),
        ({"method": "none", "budget": 0.5}, "keeps every token"),
        ({"variant": "reference", "links": "best"}, "unites all links"),
        ({"buget": 0.3}, "did you mean 'budget'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MergeConfig(**settings)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim 5"):
        merge(torch.ones(1, 2, 2, 16), MergeConfig(budget=0.5, head_dim=5))
    with pytest.raises(ConfigError, match=r"expected floats \[T, H, W, C\]"):
        merge(torch.ones(2, 2, 16), MergeConfig(budget=0.5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "root_level"), [((5, 14, 14), 1), ((3, 14, 14), 0), ((2, 5, 7), 1), ((4, 2, 2), 1), ((2, 13, 9), 0)]
)
def test_kernels_equal_plain_torch(shape: tuple[int, int, int], root_level: int, dtype: torch.dtype) -> None:
    from sttm.merging import triton_kernels

    x = video(*shape, C=72).to(dtype)
    grid = make_grid(*shape[1:], root_level, x.device)
    expected = measure(x.flatten(1, 2), grid, temporal=True, head_dim=None, compare_missing=False)
    on_cuda = make_grid(*shape[1:], root_level, torch.device("cuda"))
    assert triton_kernels.fits(on_cuda)
    found = measure(x.cuda().flatten(1, 2), on_cuda, temporal=True, head_dim=None, compare_missing=False)
    torch.testing.assert_close(found.split.cpu(), expected.split, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.cross.cpu(), expected.cross, atol=1e-5, rtol=0)
    cover = cover_cosine(expected.split, grid)
    covered, coarse = cover > 0.7, expected.cross.mul(4).round() / 4  # rounded, so that many cosines are equal
    links = best_overlaps(nodes_of(covered, grid), coarse, grid)
    on_gpu = best_overlaps(nodes_of(covered.cuda(), on_cuda), coarse.cuda(), on_cuda)
    assert torch.equal(on_gpu.earlier.cpu(), links.earlier)
    assert torch.equal(on_gpu.similarity.cpu(), links.similarity)


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [0.5, 0.05])
def test_a_replayed_decision_is_the_same(budget: float) -> None:
    config = MergeConfig(budget=budget, spatial_share=0.5)
    kept = []
    for seed in range(4):  # the first launches kernel by kernel, the second captures the graph, the others replay it
        x = video(6, 14, 14, C=64, seed=seed).cuda()
        grid = make_grid(14, 14, 1, x.device)
        expected = _assemble(x.flatten(1, 2), grid, _decide(x, grid, config), config)
        kept.append((merge(x, config), expected))
    for merged, expected in kept:
        assert len(merged) == len(expected)
        for name in ("survivor", "index", "patches", "boxes", "weights", "features"):
            assert torch.equal(getattr(merged, name), getattr(expected, name)), name
        assert (merged.spatial_threshold, merged.temporal_threshold) == pytest.approx(
            (expected.spatial_threshold, expected.temporal_threshold)
        )


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_merges_on_a_gpu_that_is_not_the_current_one() -> None:
    x, config = video(6, 14, 14, C=64), MergeConfig(budget=0.4)
    for _ in range(3):
        first, second = (merge(x.to(gpu), config) for gpu in ("cuda:0", "cuda:1"))
        assert torch.equal(first.survivor.cpu(), second.survivor.cpu())
        torch.testing.assert_close(first.apply(x.to("cuda:0")).cpu(), second.apply(x.to("cuda:1")).cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_sums_equal_plain_torch(rows: int, dtype: torch.dtype) -> None:
    x, row = torch.rand(1000, 72).to(dtype), torch.randint(-1, rows, (1000,))
    weight = torch.rand(len(row)) / 300
    expected = weighted_sum(x, row, weight, rows)
    found = weighted_sum(x.cuda(), row.cuda(), weight.cuda(), rows)
    assert torch.equal(found, weighted_sum(x.cuda(), row.cuda(), weight.cuda(), rows))
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.gpu
def test_not_a_number_stays_where_it_is_on_cuda() -> None:
    x = video(4, 6, 6, C=32)
    x[1, 2, 3] = torch.nan
    config = MergeConfig(budget=0.5)
    on_cpu, on_cuda = merge(x, config), merge(x.cuda(), config)
    assert torch.equal(on_cpu.survivor, on_cuda.survivor.cpu())
    assert int(on_cuda.features.isnan().any(1).sum()) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config", [MergeConfig(budget=0.3), MergeConfig(spatial_threshold=0.7, temporal_threshold=0.6)]
)
def test_cuda_in_bfloat16_decides_as_the_cpu(config: MergeConfig) -> None:
    x = video(16, 14, 14, C=256).bfloat16()
    on_cpu, on_cuda = merge(x, config), merge(x.cuda(), config)
    same = (on_cpu.index[on_cpu.survivor] == on_cuda.index.cpu()[on_cuda.survivor.cpu()]).float().mean()
    assert same > 0.995  # a cosine within rounding of the threshold may fall on either side
    if config.budget:
        assert len(on_cpu) == len(on_cuda)
    if same == 1:
        torch.testing.assert_close(on_cpu.features, on_cuda.features.cpu(), atol=1e-2, rtol=1e-2)
