"""Keep exactly as many tokens as asked for: both thresholds are chosen for each video, to meet the count.

Both steps rank their candidates by cosine and take the most similar ones. The spatial step takes quadtree nodes until
r ** spatial_share of the tokens are left, where r = target / N. The temporal step then takes links until the target is
met. Under the rule `best` a node has one possible link, so every link removes exactly one token and the count is exact
even when cosines are equal. If the links above the floor cannot reach the target (few frames, much motion), the
spatial step is made coarser, just as far as needed.

Shapes: T frames of P cells, N = T*P; I inner nodes; E links.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sttm.merging.decision import Decision
from sttm.merging.grid import Grid
from sttm.merging.quadtree import Nodes, cover_cosine, covered_first, nodes_of
from sttm.merging.similarity import Similarity
from sttm.merging.temporal import LinkRule, Links, collapse, find_links


@dataclass(frozen=True)
class PendingDecision:
    """A decision under the link rule `best` that was computed on a device without waiting for that device.

    Attributes:
        decision: the decision; its thresholds are still None.
        facts: float64 [4] on the device: the number of nodes, the number of links whose cosine reaches the floor, the
            lowest cosine of a covered node, and the lowest cosine of a link that was made. inf means that there is
            no such node or link.
    """

    decision: Decision
    facts: Tensor

    def resolve(self, target: int) -> tuple[int, Decision] | None:
        """Wait for the device and complete the decision.

        Returns:
            The number of survivors and the decision with its thresholds; None if the target is out of reach.
        """
        nodes, usable, *lowest = self.facts.tolist()
        if nodes - usable > target:
            return None
        thresholds = [None if cosine == torch.inf else cosine for cosine in lowest]
        return min(int(nodes), target), replace(
            self.decision, spatial_threshold=thresholds[0], temporal_threshold=thresholds[1]
        )


@dataclass(frozen=True)
class _Probe:
    """The spatial step for one wanted number of nodes, and how far the temporal step could reduce these nodes."""

    covered: Tensor  # bool [T, I]
    nodes: Nodes
    links: Links
    count: int  # number of nodes
    fewest: int  # number of survivors if every link above the floor is made


def decide_by_budget(
    similarity: Similarity, grid: Grid, target: int, spatial_share: float, floor: float, rule: LinkRule
) -> Decision:
    """Decide so that `target` of the N tokens are left, or as few as possible if cosines >= `floor` do not reach it.

    A video of one frame has no links. There the spatial step alone must meet the target; a quadtree node removes up to
    3 tokens at once, so up to 2 tokens fewer than `target` may be left.
    """
    if rule == "best" and (
        settled := decide_without_waiting(similarity, grid, target, spatial_share, floor).resolve(target)
    ):
        return settled[1]
    cover = cover_cosine(similarity.split, grid)
    cells = len(cover) * grid.cells

    def probe(wanted: int) -> _Probe:
        covered = covered_first(cover, grid, cells - wanted, floor)
        nodes = nodes_of(covered, grid)
        links = find_links(nodes, similarity.cross, grid, rule)
        return _Probe(covered, nodes, links, *_counts(nodes, links, floor, rule))

    best = probe(_nodes_wanted(cells, target, spatial_share))
    if best.fewest > target:
        best = _relax(probe, best, len(cover) * grid.roots, target)
    order = best.links.similarity.sort(descending=True, stable=True).indices  # equal cosines keep their listed order
    chosen = _first(order, _count_links(best, order, target, floor, rule))
    into = collapse(best.links, chosen, best.nodes, rule)
    lowest = torch.stack([_lowest(cover, best.covered), _lowest(best.links.similarity, chosen)]).tolist()
    return Decision(best.nodes, into, *(None if cosine == torch.inf else cosine for cosine in lowest))


def decide_without_waiting(
    similarity: Similarity, grid: Grid, target: int, spatial_share: float, floor: float
) -> PendingDecision:
    """Decide under the link rule `best` without waiting for the device, assuming that the target is within reach.

    `PendingDecision.resolve` says later whether the links above the floor did reach the target.
    """
    cover = cover_cosine(similarity.split, grid)
    cells = len(cover) * grid.cells
    covered = covered_first(cover, grid, cells - _nodes_wanted(cells, target, spatial_share), floor)
    nodes = nodes_of(covered, grid)
    links = find_links(nodes, similarity.cross, grid, "best")
    count, usable = nodes.is_first.sum(), (links.similarity >= floor).sum()
    ranked, order = links.similarity.sort(descending=True, stable=True)
    is_taken = torch.arange(cells, device=order.device) < torch.minimum(usable, count - target)
    chosen = torch.empty_like(is_taken).scatter_(0, order, is_taken)
    lowest = [_lowest(cover, covered), _lowest(ranked, is_taken)]
    facts = torch.stack([x.double() for x in (count, usable, *lowest)])
    return PendingDecision(Decision(nodes, collapse(links, chosen, nodes, "best"), None, None), facts)


def _nodes_wanted(cells: int, target: int, spatial_share: float) -> int:
    return round(cells * (target / cells) ** spatial_share)


def _counts(nodes: Nodes, links: Links, floor: float, rule: LinkRule) -> list[int]:
    """The number of nodes, and the number of survivors if every link above the floor is made."""
    count = nodes.is_first.sum()
    usable = links.similarity >= floor
    if rule == "best":
        return torch.stack([count, count - usable.sum()]).tolist()
    return torch.stack([count, _survivors(nodes, collapse(links, usable, nodes, rule)).sum()]).tolist()


def _relax(probe: Callable[[int], _Probe], start: _Probe, fewest_nodes: int, target: int) -> _Probe:
    """Find the finest quadtree whose links still reach the target.

    If even the coarsest quadtree does not reach it, the better of `start` and the coarsest is returned.
    """
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


def _count_links(probe: _Probe, order: Tensor, target: int, floor: float, rule: LinkRule) -> int:
    """How many links must be made, the most similar first, until `target` survivors are left."""
    usable = int((probe.links.similarity >= floor).sum())
    if rule == "best":
        return max(0, min(usable, probe.count - target))
    low, high = -1, usable
    while high - low > 1:
        middle = (low + high) // 2
        into = collapse(probe.links, _first(order, middle), probe.nodes, rule)
        if int(_survivors(probe.nodes, into).sum()) <= target:
            high = middle
        else:
            low = middle
    return high


def _first(order: Tensor, count: int) -> Tensor:
    """bool [E]: the first `count` entries in the order given by the indices `order` [E]."""
    return torch.zeros_like(order, dtype=torch.bool).index_fill_(0, order[:count], True)


def _survivors(nodes: Nodes, into: Tensor) -> Tensor:
    """bool [N]: places of the nodes that go into no other node."""
    return nodes.is_first.flatten() & (into == torch.arange(len(into), device=into.device))


def _lowest(cosine: Tensor, is_taken: Tensor) -> Tensor:
    """The lowest cosine that was taken, or inf if none was taken; a scalar tensor."""
    return torch.where(is_taken, cosine, torch.inf).amin() if cosine.numel() else cosine.new_tensor(torch.inf)
