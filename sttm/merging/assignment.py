"""Which survivor each cell goes to, and with what weight; this follows from a decision alone, without the features.

Shapes: T frames of P cells, N = T*P, M survivors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.merging.decision import Decision
from sttm.merging.grid import Grid


@dataclass(frozen=True)
class Assignment:
    """The fields of `Merged` that follow from a decision alone, with the same shapes and dtypes."""

    index: Tensor
    survivor: Tensor
    weights: Tensor
    patches: Tensor
    boxes: Tensor


def assign(decision: Decision, grid: Grid, *, is_weighted: bool, survivors: int | None = None) -> Assignment:
    """Assign every cell to a survivor, on the device of the decision.

    Args:
        decision: which nodes are merged.
        grid: the grid that the decision was made for.
        is_weighted: whether members of a survivor count by the cells they cover; otherwise they count the same.
        survivors: expected number of survivors, which avoids a sync with the GPU. If it is too high, the last rows of
            the result are padding. If it is too low, the result is invalid. None counts the survivors.
    """
    nodes, into = decision.nodes, decision.into
    N = len(into)
    is_node = nodes.is_first.flatten()
    survives = is_node & (into == torch.arange(N, device=into.device))
    if survivors is None:
        index = survives.nonzero().squeeze(1)
    else:
        index = survives.nonzero_static(size=survivors, fill_value=0).squeeze(1)
    M = len(index)
    survivor = (survives.cumsum(0) - 1).clamp_max(M - 1)[into[nodes.place.flatten()]]
    one = torch.ones((), dtype=torch.int32, device=into.device)
    patches = torch.zeros(M, dtype=torch.int32, device=into.device).index_add_(0, survivor, one.expand(N))
    within = grid.weight.gather(0, nodes.level).flatten()
    if is_weighted:
        share = grid.patches[nodes.id].flatten() / patches[survivor]
    else:
        members = torch.zeros(M, device=into.device).index_add_(0, survivor, is_node.float())
        share = 1 / members[survivor]
    boxes = torch.cat([(index // grid.cells)[:, None].int(), grid.box[nodes.id.flatten()[index]]], 1)
    return Assignment(index, survivor, within * share, patches, boxes)
