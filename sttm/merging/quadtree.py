"""The spatial step: which quadtree nodes of each frame stay whole (paper, section 3.2).

A node stays whole if its cosine with every child reaches the threshold; else its children are examined. So a cell ends
in its coarsest node that passes, and a node is *covered* (kept whole, or inside one that is) from the threshold
max(own split cosine, that of its ancestors) down. How many nodes a threshold leaves follows by counting.

Shapes as in `grid`: T frames, P cells a frame, I inner nodes.
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
        id: int64 [T, P], that node in the numbering of `grid`.
        place: int64 [T, P], raster index in the video of that node's top-left cell: its name from here on.
        is_first: bool [T, P], the cell is the top-left one of its node.
    """

    level: Tensor
    id: Tensor
    place: Tensor
    is_first: Tensor


def cover_cosine(split_TI: Tensor, grid: Grid) -> Tensor:
    """[T, I]: the highest threshold at which each inner node is covered."""
    return split_TI[:, grid.lineage].amax(-1)


def covered_first(cover_TI: Tensor, grid: Grid, removed: int, floor: float) -> Tensor:
    """bool [T, I]: the most similar nodes, as many as take away at most `removed` tokens, none below `floor`.

    Of equal cosines the finer node goes first (so that a covered node's descendants are covered), then the upper left,
    then the earlier. So the last node taken may be merged in part only, less than its cosine as threshold would.
    """
    cosine, order = cover_TI.T.flatten().sort(descending=True, stable=True)
    lost = (grid.child_count - 1)[order // len(cover_TI)].cumsum(0)
    taken = (lost <= removed) & (cosine >= floor)
    return torch.empty_like(taken).scatter_(0, order, taken).view(cover_TI.T.shape).T


def nodes_of(covered_TI: Tensor, grid: Grid) -> Nodes:
    """The nodes left when these inner nodes are covered."""
    T, P = len(covered_TI), grid.cells
    level = covered_TI[:, grid.inner].sum(1)
    node = grid.node.gather(0, level)
    cell = torch.arange(T * P, device=node.device).view(T, P)
    place = grid.first[node] + cell[:, :1]
    return Nodes(level, node, place, place == cell)
