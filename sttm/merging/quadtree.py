"""The spatial step: which quadtree nodes of each frame stay whole (paper, section 3.2).

A node stays whole if its cosine with every child reaches the threshold. Otherwise its children are examined. So each
cell ends in the coarsest of its nodes that passes. A node is *covered* if it, or a node above it, stays whole. It is
covered at every threshold up to the highest split cosine among itself and the nodes above it, where the split cosine
of a node is its lowest cosine with a child. The number of nodes that a threshold leaves then follows by counting.

Shapes: T frames, P cells a frame, I inner nodes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.merging.grid import Grid


@dataclass(frozen=True)
class Nodes:
    """The quadtree nodes that the spatial step leaves.

    Attributes:
        level: int64 [T, P], level of the node that holds each cell.
        id: int64 [T, P], number of that node in `sttm.merging.grid.Grid`.
        place: int64 [T, P], raster index in the video of that node's top-left cell. Later steps name a node by it.
        is_first: bool [T, P], whether the cell is the top-left cell of its node.
    """

    level: Tensor
    id: Tensor
    place: Tensor
    is_first: Tensor


def cover_cosine(split_TI: Tensor, grid: Grid) -> Tensor:
    """float32 [T, I]: the highest threshold at which each inner node is covered, from split cosines [T, I]."""
    return split_TI[:, grid.lineage].amax(-1)


def covered_first(cover_TI: Tensor, grid: Grid, removed: int, floor: float) -> Tensor:
    """bool [T, I]: cover the most similar nodes, as long as at most `removed` tokens go and cosines reach `floor`.

    Among equal cosines the finer node goes first, so that all nodes below a covered node are covered; then the one
    nearer to the top left; then the earlier frame. The last node taken may therefore be merged only in part: less than
    if its cosine were used as the threshold.
    """
    cosine, order = cover_TI.T.flatten().sort(descending=True, stable=True)
    lost = (grid.child_count - 1)[order // len(cover_TI)].cumsum(0)
    taken = (lost <= removed) & (cosine >= floor)
    return torch.empty_like(taken).scatter_(0, order, taken).view(cover_TI.T.shape).T


def nodes_of(covered_TI: Tensor, grid: Grid) -> Nodes:
    """The nodes that are left when the inner nodes of `covered_TI` (bool [T, I]) are covered."""
    T, P = len(covered_TI), grid.cells
    level = covered_TI[:, grid.inner].sum(1)
    node = grid.node.gather(0, level)
    cell = torch.arange(T * P, device=node.device).view(T, P)
    place = grid.first[node] + cell[:, :1]
    return Nodes(level, node, place, place == cell)
