"""The temporal step: similar nodes that overlap in neighbouring frames are merged into the earliest (section 3.3).

Two quadtree nodes either are disjoint or one contains the other. So all overlapping pairs of two frames are found by
looking up, for each cell, the node over it in both frames. A node is named by its `place`, the raster index of its
top-left cell in the video.

Shapes: T frames of P cells, N = T*P places, E possible links.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sttm.merging.grid import Grid
from sttm.merging.quadtree import Nodes

LinkRule = Literal["best", "all", "reference"]
"""Which links of a node are made.

`best` links a node to at most one node of the frame before. `all` merges connected components. `reference` merges
connected components as the authors' released code finds them, which may miss some.
"""


@dataclass(frozen=True)
class Links:
    """Possible links between nodes of neighbouring frames.

    Attributes:
        later: int64 [E], place of the node in the later frame.
        earlier: int64 [E], place of the node in the earlier frame.
        similarity: float32 [E], cosine of the two nodes; -inf marks an entry that is not a link.
    """

    later: Tensor
    earlier: Tensor
    similarity: Tensor


def find_links(nodes: Nodes, cross: Tensor, grid: Grid, rule: LinkRule) -> Links:
    """All possible links, from which a threshold or a budget chooses.

    Args:
        nodes: the nodes that the spatial step left.
        cross: cosines between neighbouring frames, `Similarity.cross`, float32 [T-1, R, K, K].
        grid: the quadtree over a frame.
        rule: which links count.
    """
    return best_overlaps(nodes, cross, grid) if rule == "best" else all_overlaps(nodes, cross, grid)


def collapse(links: Links, chosen: Tensor, nodes: Nodes, rule: LinkRule) -> Tensor:
    """int64 [N]: the place of the node that each node goes into when the `chosen` links (bool [E]) are made."""
    if rule == "best":
        return follow(links, chosen, len(nodes.place))
    return unite(links, chosen, nodes.place.numel(), stop_early=rule == "reference")


def all_overlaps(nodes: Nodes, cross: Tensor, grid: Grid) -> Links:
    """Every pair of overlapping nodes of neighbouring frames, listed once for each cell that both nodes cover."""
    return Links(*_at_each_cell(nodes, cross, grid))


def best_overlaps(nodes: Nodes, cross: Tensor, grid: Grid) -> Links:
    """For every place [N] the link to the most similar overlapping node in the frame before.

    If several are equally similar, the one nearest to the top left is taken.
    """
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
    """int64 [N]: the place that each node goes into under the rule `best`.

    The chosen links of `best_overlaps` form trees; each node goes into the root of its tree.
    """
    into = torch.where(chosen, links.earlier, links.later)
    for _ in range(max(0, frames - 1).bit_length()):
        into = into[into]
    return into


def unite(links: Links, chosen: Tensor, places: int, *, stop_early: bool) -> Tensor:
    """int64 [N]: the earliest place that each node is connected with through chosen links of `all_overlaps`.

    `stop_early` reproduces the authors' released code, whose loop ends as soon as applying the map twice changes
    nothing: chains of links that meet only in a later node may then stay apart.
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
    """For each cell of each pair of frames [(T-1)*P]: the places of the later and earlier node, and their cosine."""
    slot = grid.node_slot[nodes.id]
    K = grid.pool.shape[1]
    cosine = cross.flatten(1).gather(1, slot[:-1] * K + slot[1:] % K)
    return nodes.place[1:].flatten(), nodes.place[:-1].flatten(), cosine.flatten()
