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

    covered: Tensor  # bool [T, I]
    nodes: Nodes
    links: Links
    count: int  # nodes
    fewest: int  # survivors if every link above the floor is made


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
        return _Probe(covered, nodes, links, *_counts(nodes, links, floor, rule))

    best = probe(round(cells * (target / cells) ** spatial_share))
    if best.fewest > target:
        best = _relax(probe, best, len(cover) * grid.roots, target)
    chosen = _choose(best, target, floor, rule)
    into = collapse(best.links, chosen, best.nodes, rule)
    return Decision(best.nodes, into, *_lowest((cover, best.covered), (best.links.similarity, chosen)))


def _counts(nodes: Nodes, links: Links, floor: float, rule: LinkRule) -> list[int]:
    """Nodes, and survivors if every link above the floor is made."""
    count = nodes.is_first.sum()
    usable = links.similarity >= floor
    if rule == "best":
        return torch.stack([count, count - usable.sum()]).tolist()
    return torch.stack([count, _survivors(nodes, collapse(links, usable, nodes, rule)).sum()]).tolist()


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


def _choose(probe: _Probe, target: int, floor: float, rule: LinkRule) -> Tensor:
    """bool [E]: the most similar links, as many as lead to `target` survivors."""
    usable = probe.links.similarity >= floor
    rank = probe.links.ranked()
    if rule == "best":
        return usable & (rank < probe.count - target)
    low, high = -1, len(rank)
    while high - low > 1:
        middle = (low + high) // 2
        into = collapse(probe.links, usable & (rank < middle), probe.nodes, rule)
        if int(_survivors(probe.nodes, into).sum()) <= target:
            high = middle
        else:
            low = middle
    return usable & (rank < high)


def _survivors(nodes: Nodes, into: Tensor) -> Tensor:
    """bool [N]: places of the nodes that go into none other."""
    return nodes.is_first.flatten() & (into == torch.arange(len(into), device=into.device))


def _lowest(*steps: tuple[Tensor, Tensor]) -> list[float | None]:
    """The lowest cosine each step took; None if it took none."""
    lowest = [torch.where(taken, cosine, torch.inf).flatten() for cosine, taken in steps]
    values = torch.stack([v.amin() if len(v) else v.new_tensor(torch.inf) for v in lowest]).tolist()
    return [None if v == torch.inf else v for v in values]
