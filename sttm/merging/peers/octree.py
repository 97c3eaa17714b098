"""One tree over space and time: the rule of the quadtree for nodes of 2 x 2 x 2 children, instead of two steps.

Every level halves the time axis as well as both sides. Where a length is odd, its first position has no partner. A
node stays whole if its cosine with every child reaches a threshold, which is chosen to meet the target.

Shapes: T x H x W cells, N of them; n nodes of a level.
"""

from itertools import pairwise

import torch
from torch import Tensor

from sttm.merging.grid import level_sizes
from sttm.merging.merged import Merged
from sttm.merging.peers.grouping import merge_groups


def merge_octree(x_THWC: Tensor, root_level: int, target: int) -> Merged:
    """Reduce a video to at most `target` tokens, or to the roots of the tree if there are more roots than `target`.

    A node removes up to 7 tokens at once, so up to 6 tokens fewer than `target` may be left.
    """
    T, H, W, _ = x_THWC.shape
    shapes = _level_shapes(T, H, W, root_level)
    up = [_parents(fine, coarse, x_THWC.device) for fine, coarse in pairwise(shapes)]
    counts = [parent.bincount() for parent in up]
    cover = _cover_cosines(x_THWC.flatten(0, 2).float(), up, counts)
    covered, threshold = _covered_first(cover, counts, T * H * W - target)
    return _collect(x_THWC, up, counts, covered, target, threshold)


def _level_shapes(T: int, H: int, W: int, root_level: int) -> list[tuple[int, int, int]]:
    shapes = []
    for h, w in level_sizes(H, W, root_level):
        shapes.append((T, h, w))
        T = (T + 1) // 2
    return shapes


def _parents(fine: tuple[int, ...], coarse: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 [n]: for each node of the finer level its parent in the coarser level, both in raster order."""
    t, y, x = ((torch.arange(side, device=device) + side % 2) // 2 for side in fine)
    return ((t[:, None, None] * coarse[1] + y[:, None]) * coarse[2] + x).flatten()


def _cover_cosines(x_NC: Tensor, up: list[Tensor], counts: list[Tensor]) -> list[Tensor]:
    """Per inner level float32 [n]: the highest threshold at which the node, or a node around it, stays whole."""
    splits = []
    for parent, count in zip(up, counts, strict=True):
        mean = x_NC.new_zeros(len(count), x_NC.shape[1]).index_add_(0, parent, x_NC) / count[:, None]
        cosine = torch.cosine_similarity(x_NC, mean[parent], dim=1)
        split = x_NC.new_full((len(count),), torch.inf).scatter_reduce(0, parent, cosine, "amin")
        splits.append(split.masked_fill(count == 1, -torch.inf))
        x_NC = mean
    for level in range(len(splits) - 2, -1, -1):
        splits[level] = torch.maximum(splits[level], splits[level + 1][up[level + 1]])
    return splits


def _covered_first(cover: list[Tensor], counts: list[Tensor], removed: int) -> tuple[list[Tensor], float | None]:
    """Take the most similar nodes until `removed` (>= 1) tokens are gone.

    Returns:
        Per inner level bool [n], which nodes were taken; and the lowest cosine among them.
    """
    if not cover:
        return [], None
    cosine, order = torch.cat(cover).sort(descending=True, stable=True)
    loss = (torch.cat(counts) - 1)[order]
    taken = loss.cumsum(0) - loss < removed
    covered = torch.empty_like(taken)
    covered[order] = taken
    return list(covered.split([len(c) for c in cover])), cosine[taken & (loss > 0)].min().item()


def _collect(
    x_THWC: Tensor, up: list[Tensor], counts: list[Tensor], covered: list[Tensor], target: int, threshold: float | None
) -> Merged:
    T, H, W, _ = x_THWC.shape
    cell = torch.arange(T * H * W, device=x_THWC.device)
    node = place = last = cell
    weight = weights = torch.ones(len(cell), device=cell.device)
    for parent, count, whole in zip(up, counts, covered, strict=True):
        node = parent[node]
        weight = weight / count[node]
        first = cell.new_full((len(count),), len(cell)).scatter_reduce(0, node, cell, "amin")
        end = cell.new_zeros(len(count)).scatter_reduce(0, node, cell, "amax")
        place = torch.where(whole[node], first[node], place)
        last = torch.where(whole[node], end[node], last)
        weights = torch.where(whole[node], weight, weights)
    height = last % (H * W) // W - place % (H * W) // W + 1
    size = torch.stack([height, last % W - place % W + 1], 1)
    return merge_groups(x_THWC, place, target=target, weights_N=weights, box_size_N2=size, threshold=threshold)
