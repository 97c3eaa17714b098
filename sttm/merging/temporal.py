"""The temporal step: nodes of neighbouring frames that overlap and look alike collapse into the earliest (section 3.3).

Quadtree cells nest or are disjoint, so two nodes overlap if one contains the other, and looking up the node over each
cell in both frames finds every pair. Decisions name a node by its `place` (raster index of its top-left cell).

Shapes: T frames of P cells, N = T*P places, E possible links.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sttm.merging.grid import Grid
from sttm.merging.quadtree import Nodes

LinkRule = Literal["best", "all", "reference"]
"""`best`: one destination a node; `all`: connected components; `reference`: these as the released code finds them."""


@dataclass(frozen=True)
class Links:
    """Possible links between nodes of neighbouring frames.

    Attributes:
        later, earlier: int64 [E], places of the two nodes.
        similarity: float32 [E], their cosine; -inf marks an entry that is no link.
    """

    later: Tensor
    earlier: Tensor
    similarity: Tensor


def find_links(nodes: Nodes, cross: Tensor, grid: Grid, rule: LinkRule) -> Links:
    """The links that a threshold or a budget chooses from. `cross` is `Similarity.cross`, [T-1, R, K, K]."""
    return best_overlaps(nodes, cross, grid) if rule == "best" else all_overlaps(nodes, cross, grid)


def collapse(links: Links, chosen: Tensor, nodes: Nodes, rule: LinkRule) -> Tensor:
    """int64 [N]: the place that the node at each place goes into when the `chosen` links (bool [E]) are made."""
    if rule == "best":
        return follow(links, chosen, len(nodes.place))
    return unite(links, chosen, nodes.place.numel(), stop_early=rule == "reference")


def all_overlaps(nodes: Nodes, cross: Tensor, grid: Grid) -> Links:
    """Every overlapping pair, listed once for each cell that both cover."""
    return Links(*_at_each_cell(nodes, cross, grid))


def best_overlaps(nodes: Nodes, cross: Tensor, grid: Grid) -> Links:
    """For every place [N] the link to the most similar overlap in the frame before; of equal ones the top-left."""
    if cross.is_cuda:
        from sttm.merging import triton_kernels

        return Links(*triton_kernels.best_overlaps(nodes.place, nodes.id, cross, grid))
    N = nodes.place.numel()
    later, earlier, cosine = _at_each_cell(nodes, cross, grid)
    best = cosine.new_full((N,), float("-inf")).scatter_reduce(0, later, cosine, "amax")
    candidate = torch.where(cosine == best[later], earlier, N)
    place = torch.arange(N, device=later.device)
    return Links(place, place.scatter_reduce(0, later, candidate, "amin", include_self=False), best)


def follow(links: Links, chosen: Tensor, frames: int) -> Tensor:
    """int64 [N]: the place each node collapses into, for `best_overlaps`: the root of its tree in the forest."""
    into = torch.where(chosen, links.earlier, links.later)
    for _ in range(max(0, frames - 1).bit_length()):
        into = into[into]
    return into


def unite(links: Links, chosen: Tensor, places: int, *, stop_early: bool) -> Tensor:
    """int64 [N]: the earliest place each node is connected with, for `all_overlaps`.

    `stop_early` reproduces the authors' released code, whose loop ends as soon as the map is idempotent: chains that
    meet only in a later node may stay apart.
    """
    a, b = links.later[chosen], links.earlier[chosen]
    into = torch.arange(places, device=a.device)
    while len(a):
        lowest = torch.minimum(into[a], into[b])
        into = into.scatter_reduce(0, a, lowest, "amin").scatter_reduce(0, b, lowest, "amin")
        into = into[into]
        if torch.equal(into, into[into]) and (stop_early or torch.equal(into[a], into[b])):
            break
    return into


def _at_each_cell(nodes: Nodes, cross: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Place of the later and of the earlier node over each cell of each pair of frames, and their cosine: [(T-1)*P]."""
    slot = grid.node_slot[nodes.id]
    K = grid.pool.shape[1]
    cosine = cross.flatten(1).gather(1, slot[:-1] * K + slot[1:] % K)
    return nodes.place[1:].flatten(), nodes.place[:-1].flatten(), cosine.flatten()
