"""Each peer method equals a plain version of itself and keeps the guarantees of `Merged` at every budget."""

from typing import get_args

import numpy as np
import pytest
import torch
from test_merging import video
from torch.nn.functional import interpolate

from sttm.merging import MergeConfig, Merged, merge
from sttm.merging.config import Method

PEERS = [method for method in get_args(Method) if method not in ("sttm", "none")]
SELECTING = ("uniform", "random")
SHAPES = [(1, 1, 1), (1, 6, 6), (2, 3, 4), (6, 5, 1), (9, 7, 6), (4, 1, 9)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def groups(merged: Merged) -> list[set[int]]:
    """Raster indices of the cells of each survivor."""
    members: list[set[int]] = [set() for _ in range(len(merged))]
    for cell, row in enumerate(merged.survivor.tolist()):
        if row >= 0:
            members[row].add(cell)
    return members


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("budget", [0.05, 0.4, 0.9, 1.0])
def test_keeps_the_promises_of_merged(method: str, shape: tuple[int, int, int], budget: float) -> None:
    x, N = video(*shape), int(np.prod(shape))
    merged = merge(x, MergeConfig(method=method, budget=budget))
    assert merged.index.tolist() == sorted(set(merged.index.tolist()))
    t, y, x0, y1, x1 = merged.boxes.long().unbind(1)
    assert torch.equal(merged.index, (t * shape[1] + y) * shape[2] + x0)
    assert ((y < y1) & (x0 < x1) & (y1 <= shape[1]) & (x1 <= shape[2])).all()
    assert torch.equal(merged.survivor[merged.index], torch.arange(len(merged)))
    assert [len(g) for g in groups(merged)] == merged.patches.tolist()
    assert int(merged.patches.sum()) == (len(merged) if method in SELECTING else N)
    cells = x.reshape(N, -1)
    for row, members in enumerate(groups(merged)):
        inside = sorted(members)
        torch.testing.assert_close(merged.weights[inside].sum(), torch.tensor(1.0))
        torch.testing.assert_close(merged.features[row], merged.weights[inside] @ cells[inside])
    assert merged.weights[merged.survivor < 0].abs().sum() == 0
    if budget == 1.0:
        assert torch.equal(merged.features, cells)


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("budget", [0.1, 0.3, 0.5, 0.8])
def test_meets_the_budget_as_exactly_as_it_can(method: str, budget: float) -> None:
    T, P = 12, 14 * 14
    target = int(budget * T * P + 1e-6)
    kept = len(merge(video(T, 14, 14), MergeConfig(method=method, budget=budget)))
    if method == "dycoke":
        assert kept == max(target, 3 * P)
    elif method == "uniform":
        assert kept == max(1, target // P) * P
    elif method == "pooling":
        assert kept == T * {0.1: 4 * 4, 0.3: 7 * 8, 0.5: 9 * 10, 0.8: 12 * 13}[budget]
    elif method == "octree":
        assert target - 6 <= kept <= target
    else:
        assert kept == target


@pytest.mark.parametrize("method", PEERS)
def test_too_small_a_target_is_reported(method: str) -> None:
    merged = merge(video(5, 6, 6), MergeConfig(method=method, tokens=1))
    assert merged.over_target == len(merged) - 1
    if method in ("tome", "random"):
        assert len(merged) == 1


def tome_plainly(cells: np.ndarray, target: int) -> list[set[int]]:
    tokens = [{i} for i in range(len(cells))]
    while len(tokens) > target:
        mean = [cells[sorted(token)].mean(0) for token in tokens]
        edges = []
        for a in range(0, len(tokens), 2):
            similar = [(cosine(mean[a], mean[b]), b) for b in range(1, len(tokens), 2)]
            edges.append((max(similar), a))
        edges.sort(reverse=True)
        joined = edges[: min(len(tokens) - target, len(tokens) // 2)]
        for (_, b), a in joined:
            tokens[b] = tokens[b] | tokens[a]
        gone = {a for _, a in joined}
        tokens = sorted((token for i, token in enumerate(tokens) if i not in gone), key=min)
    return tokens


@pytest.mark.parametrize("target", [3, 7, 20, 55])
@pytest.mark.parametrize("similarities_at_once", [1, 1 << 26])
def test_tome_equals_plain_bipartite_matching(
    target: int, similarities_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sttm.merging.peers.tome._SIMILARITIES_AT_ONCE", similarities_at_once)
    x = video(3, 4, 5)
    merged = merge(x, MergeConfig(method="tome", tokens=target))
    assert groups(merged) == tome_plainly(x.reshape(60, -1).double().numpy(), target)


def test_tome_by_frame_reduces_each_frame_by_itself() -> None:
    x = video(4, 4, 5)
    merged = merge(x, MergeConfig(method="tome_frame", tokens=30))
    expected = []
    for t, count in enumerate([7, 8, 7, 8]):
        tokens = tome_plainly(x[t].reshape(20, -1).double().numpy(), count)
        expected += [{cell + 20 * t for cell in token} for token in tokens]
    assert groups(merged) == expected


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 8, 10])
def test_dycoke_equals_plain_windows_of_four(T: int) -> None:
    x, P = video(T, 3, 4), 12
    merged = merge(x, MergeConfig(method="dycoke", budget=0.6))
    cells = x.reshape(T, P, -1).double().numpy()
    target = int(0.6 * T * P)
    openers = [t for t in range(T) if t % 4 == 0]
    followers = [t for t in range(T) if t % 4]
    place = {(t, p): (t, p) for t in range(T) for p in range(P)}
    for i, t in enumerate(followers):
        spare = max(0, target - len(openers) * P)
        stay = (i + 1) * spare // len(followers) - i * spare // len(followers)
        model = {1: t - 1, 2: t - 2, 3: t - 1}[t % 4]
        alike = sorted(range(P), key=lambda p: cosine(cells[t, p], cells[model, p]))
        for p in alike[stay:]:
            place[t, p] = place[model, p]
    expected = [place[t, p][0] * P + place[t, p][1] for t in range(T) for p in range(P)]
    assert merged.index[merged.survivor].tolist() == expected
    assert torch.equal(merged.features, x.reshape(T * P, -1)[merged.index])


def test_uniform_keeps_whole_frames_evenly_spaced() -> None:
    x = video(10, 3, 3)
    merged = merge(x, MergeConfig(method="uniform", budget=0.3))
    assert merged.boxes[:, 0].unique().tolist() == [1, 5, 8]
    assert torch.equal(merged.features, x[[1, 5, 8]].flatten(0, 2))
    assert merged.survivor[:9].tolist() == [-1] * 9


def test_pooling_of_even_sides_equals_bilinear_halving() -> None:
    x = video(3, 8, 6)
    merged = merge(x, MergeConfig(method="pooling", budget=0.25))
    halved = interpolate(x.permute(0, 3, 1, 2), scale_factor=0.5, mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(merged.features, halved.flatten(0, 2))
    assert merged.boxes[1].tolist() == [0, 0, 2, 2, 4]


def test_pooling_covers_each_cell_once_when_sides_do_not_divide() -> None:
    merged = merge(video(2, 7, 5), MergeConfig(method="pooling", tokens=13))
    assert len(merged) == 2 * 3 * 2
    covered = torch.zeros(2, 7, 5, dtype=torch.int)
    for t, y0, x0, y1, x1 in merged.boxes.tolist():
        covered[t, y0:y1, x0:x1] += 1
    assert (covered == 1).all()


def test_random_is_the_same_for_a_seed_only() -> None:
    x = video(4, 6, 6)
    kept = [merge(x, MergeConfig(method="random", budget=0.5, seed=seed)).index.tolist() for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]


def plain_octree(x: np.ndarray, levels: int) -> list[tuple]:
    """The roots as nested (cells, value, children)."""
    T, H, W, _ = x.shape
    raster = np.arange(T * H * W).reshape(T, H, W)
    nodes = {at: (frozenset({int(raster[at])}), x[at], []) for at in np.ndindex(T, H, W)}
    sides = (T, H, W)
    for _ in range(levels - 1):
        above: dict[tuple[int, ...], list[tuple]] = {}
        for at, node in nodes.items():
            above.setdefault(tuple((i + n % 2) // 2 for i, n in zip(at, sides, strict=True)), []).append(node)
        nodes = {
            at: (frozenset().union(*(n[0] for n in below)), np.mean([n[1] for n in below], axis=0), below)
            for at, below in above.items()
        }
        sides = tuple((n + 1) // 2 for n in sides)
    return list(nodes.values())


def whole_at(roots: list[tuple], threshold: float) -> dict[frozenset, np.ndarray]:
    """Cells and value of each node that stays whole."""
    todo, whole = list(roots), {}
    while todo:
        cells, value, below = todo.pop()
        if not below or (len(below) > 1 and min(cosine(value, child[1]) for child in below) >= threshold):
            whole[cells] = value
        else:
            todo += below
    return whole


@pytest.mark.parametrize(("shape", "levels"), [((1, 6, 6), 3), ((3, 5, 4), 2), ((4, 7, 6), 3), ((5, 9, 8), 3)], ids=str)
@pytest.mark.parametrize("budget", [0.2, 0.4, 0.7])
def test_octree_lies_between_the_plain_trees_around_its_threshold(
    shape: tuple[int, int, int], levels: int, budget: float
) -> None:
    """To hit the count its last node may be merged in part, so it need not equal the tree at its threshold."""
    x = video(*shape)
    merged = merge(x, MergeConfig(method="octree", budget=budget, root_level=0))
    roots = plain_octree(x.double().numpy(), levels)
    coarser = whole_at(roots, merged.spatial_threshold - 1e-6)
    finer = whole_at(roots, merged.spatial_threshold + 1e-6)
    found = [frozenset(cells) for cells in groups(merged)]
    assert all(any(cells <= larger for larger in coarser) for cells in found)
    assert all(any(cells <= larger for larger in found) for cells in finer)
    assert len(coarser) <= len(found) < len(finer)
    for cells, feature in zip(found, merged.features, strict=True):
        if cells in coarser:
            np.testing.assert_allclose(feature.numpy(), coarser[cells], atol=1e-5)
    assert sum(cells in coarser for cells in found) >= len(coarser) - 1
