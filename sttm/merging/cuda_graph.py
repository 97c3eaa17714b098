"""Merge to a budget on a GPU with a CUDA graph, which goes from cosines to survivors in one launch without a sync.

The decision consists of about sixty small kernels. Launched one by one, they would take longer than reading all
features twice. The first video of a shape and setting runs kernel by kernel, the second is captured as a graph, and
all later ones replay that graph.
"""

import threading
from functools import lru_cache

import torch
from torch import Tensor

from sttm.gpu import capture
from sttm.merging import triton_kernels
from sttm.merging.assignment import Assignment, assign
from sttm.merging.budget import PendingDecision, decide_without_waiting
from sttm.merging.config import MergeConfig
from sttm.merging.grid import Grid, make_grid
from sttm.merging.merged import Merged, weighted_sum
from sttm.merging.similarity import from_cosines

_KEPT = 8  # graphs kept, one for each shape and setting; each holds the memory of all its steps


def merge_to_budget(x_TPC: Tensor, grid: Grid, config: MergeConfig) -> Merged | None:
    """Merge features [T, P, C] on a GPU.

    Returns:
        The merge; None if the settings need another code path, or if the budget needs a coarser quadtree.
    """
    T, P, _ = x_TPC.shape
    target = config.target(T * P)
    is_plain = config.link_rule == "best" and config.head_dim is None and len(grid.inner)
    if target is None or target >= T * P or not is_plain or not triton_kernels.fits(grid):
        return None
    return _planner(T, grid.sizes[0], x_TPC.device, config).merge(x_TPC)


class _Planner:
    """Merges videos of one shape with one setting, from the second video on through a CUDA graph."""

    def __init__(self, T: int, grid: Grid, config: MergeConfig) -> None:
        target = config.target(T * grid.cells)
        assert target is not None
        self._grid, self._config, self._target = grid, config, target
        self._own, self._cross = triton_kernels.empty_cosines(T, grid, temporal=True)
        self._lock = threading.Lock()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._plan: tuple[PendingDecision, Assignment] | None = None

    def merge(self, x_TPC: Tensor) -> Merged | None:
        """Merge one video of features [T, P, C]; None if the budget needs a coarser quadtree."""
        with self._lock:
            triton_kernels.cosines(x_TPC, self._grid, self._own, self._cross)
            pending, planned = self._planned()
            # Copy the graph's own tensors, because the next video overwrites them.
            assignment = Assignment(*(field.clone() for field in vars(planned).values()))
            features = weighted_sum(x_TPC.flatten(0, 1), assignment.survivor, assignment.weights, len(assignment.index))
            resolved = pending.resolve(self._target)
        if resolved is None:
            return None
        count, decision = resolved
        return Merged(
            features=features[:count],
            index=assignment.index[:count],
            survivor=assignment.survivor,
            weights=assignment.weights,
            patches=assignment.patches[:count],
            boxes=assignment.boxes[:count],
            spatial_threshold=decision.spatial_threshold,
            temporal_threshold=decision.temporal_threshold,
            target=self._target,
        )

    def _planned(self) -> tuple[PendingDecision, Assignment]:
        if self._graph is not None and self._plan is not None:
            self._graph.replay()
            return self._plan
        if self._plan is None:  # this run also compiles and loads every kernel, which a capture could not do
            self._plan = self._decide()
            return self._plan
        graph = torch.cuda.CUDAGraph()
        self._plan = capture(graph, self._decide, torch.cuda.Stream(self._own.device))
        self._graph = graph
        graph.replay()
        return self._plan

    def _decide(self) -> tuple[PendingDecision, Assignment]:
        config, grid = self._config, self._grid
        similarity = from_cosines(self._own, self._cross, grid)
        pending = decide_without_waiting(similarity, grid, self._target, config.spatial_share, config.threshold_floor)
        return pending, assign(pending.decision, grid, is_weighted=config.is_weighted, survivors=self._target)


@lru_cache(maxsize=_KEPT)
def _planner(T: int, sides: tuple[int, int], device: torch.device, config: MergeConfig) -> _Planner:
    return _Planner(T, make_grid(*sides, config.root_level, device), config)
