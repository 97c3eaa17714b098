"""Exactly as many tokens as asked for: the thresholds follow from the counts, per video.

Both steps only rank. The spatial step takes the most similar quadtree nodes until r ** spatial_share of the tokens are
left (r = target / N); the temporal step then takes the most similar links. With one destination a node every link
removes exactly one token, so the count is exact, ties included. Where the links above the floor cannot reach the
target (few frames, much motion), the spatial step is relaxed just as far as needed.

Shapes: T frames of P cells, N = T*P; I inner nodes; E links.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.merging.decision import Decision
from sttm.merging.grid import Grid
from sttm.merging.quadtree import Nodes, cover_cosine, covered_first, nodes_of
from sttm.merging.similarity import Similarity
from sttm.merging.temporal import LinkRule, Links, collapse, find_links


@dataclass(frozen=True)
class _Probe:
    """The spatial step at one wanted count, and what the temporal step could make of it."""

    nodes: Nodes
    links: Links
    count: int  # nodes
    usable: int  # links no less similar than the floor
    fewest: int  # survivors if all of these are made
    spatial_threshold: float | None  # lowest cosine of a covered node


def decide_by_budget(
    similarity: Similarity, grid: Grid, target: int, spatial_share: float, floor: float, rule: LinkRule
) -> Decision:
    """The decision that leaves `target` of the N tokens, or as few as cosines >= `floor` allow.

    Where no frame follows that could be linked, a quadtree node removes up to 3 tokens at once and the count may fall
    short of the target by up to 2.
    """
    cover = cover_cosine(similarity.split, grid)
    cells = len(cover) * grid.cells

    def probe(wanted: int) -> _Probe:
        covered = covered_first(cover, grid, cells - wanted, floor)
        nodes = nodes_of(covered, grid)
        links = find_links(nodes, similarity.cross, grid, rule)
        return _probe(cover, covered, nodes, links, floor, rule)

    best = probe(round(cells * (target / cells) ** spatial_share))
    if best.fewest > target:
        best = _relax(probe, best, len(cover) * grid.roots, target)
    ranked, order = best.links.similarity.sort(descending=True, stable=True)  # of equal ones the first listed
    taken = _count_links(best, order, target, rule)
    into = collapse(best.links, _first(order, taken), best.nodes, rule)
    return Decision(best.nodes, into, best.spatial_threshold, ranked[taken - 1] if taken else None)


def _probe(cover: Tensor, covered: Tensor, nodes: Nodes, links: Links, floor: float, rule: LinkRule) -> _Probe:
    """All that is counted is fetched at once: a GPU is waited for a single time."""
    usable = links.similarity >= floor
    found = [nodes.is_first.sum(dtype=torch.float64), usable.sum(dtype=torch.float64)]
    if rule != "best":
        found.append(_survivors(nodes, collapse(links, usable, nodes, rule)).sum(dtype=torch.float64))
    if cover.numel():
        found.append(torch.where(covered, cover, torch.inf).amin().double())
    count, links_usable, *rest = torch.stack(found).tolist()
    fewest = count - links_usable if rule == "best" else rest[0]
    lowest = rest[-1] if cover.numel() else torch.inf
    return _Probe(nodes, links, int(count), int(links_usable), int(fewest), None if lowest == torch.inf else lowest)


def _relax(probe: Callable[[int], _Probe], start: _Probe, fewest_nodes: int, target: int) -> _Probe:
    """The finest quadtree whose links still reach the target; if the coarsest does not, what comes nearest."""
    best = probe(fewest_nodes)
    if best.fewest > target:
        return min(start, best, key=lambda reached: reached.fewest)
    low, high = fewest_nodes, start.count
    while high - low > 1:
        middle = (low + high) // 2
        candidate = probe(middle)
        if candidate.fewest <= target:
            best, low = candidate, middle
        else:
            high = middle
    return best


def _count_links(probe: _Probe, order: Tensor, target: int, rule: LinkRule) -> int:
    """How many of the links, the most similar first, lead to `target` survivors."""
    if rule == "best":
        return max(0, min(probe.usable, probe.count - target))
    low, high = -1, probe.usable
    while high - low > 1:
        middle = (low + high) // 2
        into = collapse(probe.links, _first(order, middle), probe.nodes, rule)
        if int(_survivors(probe.nodes, into).sum()) <= target:
            high = middle
        else:
            low = middle
    return high


def _first(order: Tensor, count: int) -> Tensor:
    """bool [E]: the first `count` in this order."""
    return torch.zeros_like(order, dtype=torch.bool).index_fill_(0, order[:count], True)


def _survivors(nodes: Nodes, into: Tensor) -> Tensor:
    """bool [N]: places of the nodes that go into none other."""
    return nodes.is_first.flatten() & (into == torch.arange(len(into), device=into.device))
