"""Spatio-temporal token merging (arXiv 2507.07990, section 3): decide which tokens are merged, then average them.

Shapes: T frames of H x W cells, P = H*W, N = T*P, C channels, M survivors.
"""

import torch
from torch import Tensor

from sttm.errors import ConfigError
from sttm.merging.assignment import assign
from sttm.merging.budget import decide_by_budget
from sttm.merging.config import MergeConfig
from sttm.merging.decision import Decision, decide_by_thresholds
from sttm.merging.grid import Grid, make_grid
from sttm.merging.merged import Merged, weighted_sum
from sttm.merging.peers.dispatch import merge_by_peer
from sttm.merging.similarity import Similarity, measure


@torch.no_grad()
def merge(features_THWC: Tensor, config: MergeConfig) -> Merged:
    """Reduce the visual tokens of one video with the method that `config` names.

    Similarities and sums are taken in float32; the merged features have the dtype of the input.

    Args:
        features_THWC: features [T, H, W, C], in any float dtype and on any device.
        config: the method and how many tokens to keep.

    Raises:
        ConfigError: the features are not floats [T, H, W, C] with T, H, W, C >= 1, or `head_dim` does not divide C.
    """
    if features_THWC.ndim != 4 or 0 in features_THWC.shape or not features_THWC.is_floating_point():
        raise ConfigError(
            f"merge: features {tuple(features_THWC.shape)} of {features_THWC.dtype}; expected floats [T, H, W, C]"
        )
    T, H, W, C = features_THWC.shape
    if C % (config.head_dim or C):
        raise ConfigError(f"merge: head_dim {config.head_dim} does not divide the {C} channels")
    if config.method not in ("sttm", "none"):
        return merge_by_peer(features_THWC, config)
    grid = make_grid(H, W, config.root_level, features_THWC.device)
    x_TPC = features_THWC.reshape(T, H * W, C)
    if features_THWC.is_cuda:
        from sttm.merging import cuda_graph

        if merged := cuda_graph.merge_to_budget(x_TPC, grid, config):
            return merged
    return _assemble(x_TPC, grid, _decide(features_THWC, grid, config), config)


def _decide(x_THWC: Tensor, grid: Grid, config: MergeConfig) -> Decision:
    T, rule = len(x_THWC), config.link_rule
    spatial, temporal, target = config.spatial_threshold, config.temporal_threshold, config.target(T * grid.cells)
    merges_to_target = target is not None and target < T * grid.cells
    if not merges_to_target and spatial is None and temporal is None:
        nothing = torch.zeros(T, len(grid.children), device=x_THWC.device)
        return decide_by_thresholds(Similarity(nothing, nothing), grid, None, None, rule)
    similarity = measure(
        x_THWC.flatten(1, 2),
        grid,
        temporal=merges_to_target or temporal is not None,
        head_dim=config.head_dim,
        compare_missing=config.variant == "reference",
    )
    if target is not None:
        return decide_by_budget(similarity, grid, target, config.spatial_share, config.threshold_floor, rule)
    return decide_by_thresholds(similarity, grid, spatial, temporal, rule)


def _assemble(x_TPC: Tensor, grid: Grid, decision: Decision, config: MergeConfig) -> Merged:
    """Average the features [T, P, C] as a decision says."""
    assignment = assign(decision, grid, is_weighted=config.is_weighted)
    survivor, weights, count = assignment.survivor, assignment.weights, len(assignment.index)
    return Merged(
        features=weighted_sum(x_TPC.flatten(0, 1), survivor, weights, count),
        **vars(assignment),
        spatial_threshold=decision.spatial_threshold,
        temporal_threshold=decision.temporal_threshold,
        target=config.target(x_TPC.shape[0] * x_TPC.shape[1]),
    )
