"""Compute all cosines that the merge needs while reading the features once.

The value of a quadtree node is a linear map of its cells. So the inner products between the S*S slots of each root,
within a frame and with the next frame, give every parent-child cosine and every cross-frame cosine by small linear
maps.

Shapes: T frames, F frames of one chunk, P cells a frame, C channels, I inner nodes, R roots, S*S slots and K nodes of a
root (see `sttm.merging.grid`); h heads of C/h channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.merging.grid import Grid

_EPS = 1e-8  # norms are raised to this before dividing, as in torch's cosine_similarity
_ELEMENTS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 26}


@dataclass(frozen=True)
class Similarity:
    """All cosines of one video that thresholds are compared with.

    Attributes:
        split: float32 [T, I], lowest cosine of each inner node with a child. It is -inf for a node with one child,
            which equals that child and must not stay whole for that reason.
        cross: float32 [T-1, R, K, K], cosine of each node of a root in frame t (rows) with each node of the same root
            in frame t+1 (columns). It has no elements if the temporal step is off.
    """

    split: Tensor
    cross: Tensor


def measure(x_TPC: Tensor, grid: Grid, *, temporal: bool, head_dim: int | None, compare_missing: bool) -> Similarity:
    """Compute the cosines of all quadtree nodes of one video.

    Args:
        x_TPC: features [T, P, C].
        grid: the quadtree over a frame.
        temporal: whether cosines between neighbouring frames are computed too.
        head_dim: channels of a head; similarity is the mean of the cosines of the heads. None compares whole vectors.
        compare_missing: reproduce a fault of the authors' released code. At odd borders that code takes node (0, 0) of
            the child level in place of a missing child, and it compares a single child like any other.
    """
    T, _, C = x_TPC.shape
    heads = C // (head_dim or C)
    if x_TPC.is_cuda and heads == 1 and not compare_missing:
        from sttm.merging import triton_kernels

        if triton_kernels.fits(grid):
            own, cross = triton_kernels.empty_cosines(T, grid, temporal=temporal)
            triton_kernels.cosines(x_TPC, grid, own, cross)
            return from_cosines(own, cross, grid)
    slots = grid.roots * grid.slot_cell.shape[1]
    step = max(1, _ELEMENTS_AT_ONCE.get(x_TPC.device.type, 1 << 22) // max(1, slots * C))
    splits, crosses = [], []
    for start in range(0, T, step):
        frames = x_TPC[start : start + step + 1]  # one frame more, with which the last frame is compared
        count = min(step, T - start)
        slots_FRhSD = _slot_features(frames if temporal else frames[:count], grid, heads)
        own, norm = _own_cosines(slots_FRhSD, grid)
        split = _lowest_child_cosine(own[:count].flatten(1), grid, single_decides=compare_missing)
        if compare_missing:
            split = torch.minimum(split, _missing_child_cosine(frames[:count], grid, heads))
        splits.append(split)
        if temporal:
            crosses.append(_cross_cosines(slots_FRhSD, norm, grid))
    K = grid.pool.shape[1]
    cross = torch.cat(crosses) if crosses else torch.zeros(0, grid.roots, K, K, device=x_TPC.device)
    return Similarity(_never_for_nan(torch.cat(splits)), _never_for_nan(cross))


def from_cosines(own_TRKK: Tensor, cross: Tensor, grid: Grid) -> Similarity:
    """Make a `Similarity` from the cosines [T, R, K, K] between all nodes of a root and from `Similarity.cross`."""
    return Similarity(_lowest_child_cosine(own_TRKK.flatten(1), grid, single_decides=False), cross)


def _never_for_nan(cosine: Tensor) -> Tensor:
    """Replace NaN cosines by -2, below every threshold, so that features with NaN are never merged and sort last."""
    return cosine.nan_to_num(nan=-2.0, neginf=float("-inf"))


def _slot_features(x_FPC: Tensor, grid: Grid, heads: int) -> Tensor:
    """The features of each slot, [F, R, h, S*S, C/h].

    On CUDA, half precision stays half precision, because its matrix products accumulate in float32 there. Everything
    else becomes float32.
    """
    F, P, C = x_FPC.shape
    cell = torch.arange(F, device=x_FPC.device)[:, None] * P + grid.slot_cell.flatten()
    x = x_FPC.reshape(F * P, C).index_select(0, cell.flatten())
    if not (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)):
        x = x.float()
    return x.view(F, grid.roots, -1, heads, C // heads).transpose(2, 3)


def _inner_products(a: Tensor, b: Tensor) -> Tensor:
    """float32 inner products [..., S, S] between the vectors of two tensors [..., S, D]."""
    flat_a, flat_b = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    if flat_a.dtype == torch.float32:
        product = torch.bmm(flat_a, flat_b.mT)
    else:
        product = torch.bmm(flat_a, flat_b.mT, out_dtype=torch.float32)
    return product.view(*a.shape[:-1], b.shape[-2])


def _pooled(product: Tensor, grid: Grid) -> Tensor:
    """Inner products between nodes [F, R, h, K, K] from inner products between slots [F, R, h, S*S, S*S]."""
    pool = grid.pool[:, None]
    return pool @ product @ pool.mT


def _own_cosines(slots: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Cosines [F, R, K, K] between the nodes of one root within a frame, and the norms [F, R, h, K] of the nodes."""
    product = _pooled(_inner_products(slots, slots), grid)
    norm = product.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().clamp_min(_EPS)
    return (product / (norm[..., :, None] * norm[..., None, :])).mean(2), norm


def _cross_cosines(slots: Tensor, norm: Tensor, grid: Grid) -> Tensor:
    """Cosines [F-1, R, K, K] between the nodes of one root in each frame and in the next frame."""
    product = _pooled(_inner_products(slots[:-1], slots[1:]), grid)
    return (product / (norm[:-1, ..., :, None] * norm[1:, ..., None, :])).mean(2)


def _lowest_child_cosine(own_F: Tensor, grid: Grid, *, single_decides: bool) -> Tensor:
    """Lowest cosine of each inner node with a child [F, I], from flattened cosines within frames [F, R*K*K].

    With `single_decides`, a node with one child gets the cosine with that child; otherwise it gets -inf.
    """
    cosine = own_F[:, grid.child_cosine].amin(-1)
    return cosine if single_decides else cosine.masked_fill(grid.child_count == 1, float("-inf"))


def _missing_child_cosine(x_FPC: Tensor, grid: Grid, heads: int) -> Tensor:
    """[F, I]: for each inner node that lacks a child, its cosine with node (0, 0) of the child level; inf elsewhere."""
    out = x_FPC.new_full((len(x_FPC), len(grid.children)), float("inf"), dtype=torch.float32)
    for level in range(1, grid.levels):
        nodes = grid.node[level].unique()
        nodes = nodes[grid.child_count[nodes - grid.cells] < 4]
        member = (grid.node[level] == nodes[:, None]) * grid.weight[level]
        corner = (grid.node[level - 1] == grid.node[level - 1, 0]) * grid.weight[level - 1]
        a, b = ((weights @ x_FPC.float()).unflatten(-1, (heads, -1)) for weights in (member, corner[None]))
        out[:, nodes - grid.cells] = torch.cosine_similarity(a, b, dim=-1, eps=_EPS).mean(-1)
    return out
