"""Merging to a budget on a GPU as a CUDA graph: from the cosines to the survivors in one launch, nothing waited for.

The decision is some sixty small kernels; launched one by one they take longer than both readings of the features. A
graph is captured when a video has the shape and settings of one before it, and kept for the next.
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

_KEPT = 8  # shapes and settings: a graph keeps the memory of all its steps


def merge_to_budget(x_TPC: Tensor, grid: Grid, config: MergeConfig) -> Merged | None:
    """Merge features [T, P, C] on a GPU; None where a graph does not fit or the budget is out of its reach."""
    T, P, _ = x_TPC.shape
    target = config.target(T * P)
    is_plain = config.link_rule == "best" and config.head_dim is None and len(grid.inner)
    if target is None or target >= T * P or not is_plain or not triton_kernels.fits(grid):
        return None
    return _planner(T, grid.sizes[0], x_TPC.device, config).merge(x_TPC)


class _Planner:
    """Merges videos of one shape with one setting; from the second one on through a graph."""

    def __init__(self, T: int, grid: Grid, config: MergeConfig) -> None:
        target = config.target(T * grid.cells)
        assert target is not None
        self._grid, self._config, self._target = grid, config, target
        self._own, self._cross = triton_kernels.empty_cosines(T, grid, temporal=True)
        self._lock = threading.Lock()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._plan: tuple[PendingDecision, Assignment] | None = None

    def merge(self, x_TPC: Tensor) -> Merged | None:
        """Merge one video; None if the budget is out of reach without a coarser quadtree."""
        with self._lock:
            triton_kernels.cosines(x_TPC, self._grid, self._own, self._cross)
            at_once, rows = self._planned()
            rows = Assignment(
                *(field.clone() for field in vars(rows).values())
            )  # the next video overwrites the graph's own
            features = weighted_sum(x_TPC.flatten(0, 1), rows.survivor, rows.weights, len(rows.index))
            settled = at_once.resolve(self._target)
        if settled is None:
            return None
        count, decision = settled
        return Merged(
            features=features[:count],
            index=rows.index[:count],
            survivor=rows.survivor,
            weights=rows.weights,
            patches=rows.patches[:count],
            boxes=rows.boxes[:count],
            spatial_threshold=decision.spatial_threshold,
            temporal_threshold=decision.temporal_threshold,
            target=self._target,
        )

    def _planned(self) -> tuple[PendingDecision, Assignment]:
        if self._graph is not None and self._plan is not None:
            self._graph.replay()
            return self._plan
        if self._plan is None:  # also makes every kernel ready, which cannot be done during a capture
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
        at_once = decide_without_waiting(similarity, grid, self._target, config.spatial_share, config.threshold_floor)
        return at_once, assign(at_once.decision, grid, is_weighted=config.is_weighted, survivors=self._target)


@lru_cache(maxsize=_KEPT)
def _planner(T: int, sides: tuple[int, int], device: torch.device, config: MergeConfig) -> _Planner:
    return _Planner(T, make_grid(*sides, config.root_level, device), config)
