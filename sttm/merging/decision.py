"""What the spatial and the temporal step decide about one video, before any feature is averaged.

Shapes: T frames of P cells, N = T*P.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.merging.grid import Grid
from sttm.merging.quadtree import Nodes, cover_cosine, nodes_of
from sttm.merging.similarity import Similarity
from sttm.merging.temporal import LinkRule, collapse, find_links


@dataclass(frozen=True)
class Decision:
    """Which quadtree nodes are left, and which node each of them goes into.

    Attributes:
        nodes: the nodes that the spatial step leaves.
        into: int64 [N], for the node at each place, the place of the node that it goes into. A node that goes into
            itself survives.
        spatial_threshold: lowest cosine at which a node was kept whole; None if the step was off or did nothing.
        temporal_threshold: lowest cosine at which nodes were linked; None if the step was off or did nothing.
    """

    nodes: Nodes
    into: Tensor
    spatial_threshold: float | None
    temporal_threshold: float | None


def decide_by_thresholds(
    similarity: Similarity, grid: Grid, spatial: float | None, temporal: float | None, rule: LinkRule
) -> Decision:
    """Run both steps with given thresholds. A threshold of None turns its step off."""
    cover = cover_cosine(similarity.split, grid)
    covered = torch.zeros_like(cover, dtype=torch.bool) if spatial is None else cover >= spatial
    nodes = nodes_of(covered, grid)
    into = torch.arange(nodes.place.numel(), device=cover.device)
    if temporal is not None:
        links = find_links(nodes, similarity.cross, grid, rule)
        into = collapse(links, links.similarity >= temporal, nodes, rule)
    return Decision(nodes, into, spatial, temporal)
