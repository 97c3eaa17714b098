"""What the two steps decided about one video, before any feature is touched. Shapes: T frames of P cells, N = T*P."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.merging.grid import Grid
from sttm.merging.quadtree import Nodes, cover_cosine, nodes_of
from sttm.merging.similarity import Similarity
from sttm.merging.temporal import LinkRule, collapse, find_links


@dataclass(frozen=True)
class Decision:
    """Which nodes there are and where each goes.

    Attributes:
        nodes: what the spatial step leaves.
        into: int64 [N], place of the node that the node at each place collapses into (its own: it survives).
        spatial_threshold, temporal_threshold: lowest cosines accepted; None where a step was off or did nothing.
    """

    nodes: Nodes
    into: Tensor
    spatial_threshold: float | None
    temporal_threshold: float | None


def decide_by_thresholds(
    similarity: Similarity, grid: Grid, spatial: float | None, temporal: float | None, rule: LinkRule
) -> Decision:
    """Both steps at given thresholds; None turns a step off."""
    cover = cover_cosine(similarity.split, grid)
    covered = torch.zeros_like(cover, dtype=torch.bool) if spatial is None else cover >= spatial
    nodes = nodes_of(covered, grid)
    into = torch.arange(nodes.place.numel(), device=cover.device)
    if temporal is not None:
        links = find_links(nodes, similarity.cross, grid, rule)
        into = collapse(links, links.similarity >= temporal, nodes, rule)
    return Decision(nodes, into, spatial, temporal)
