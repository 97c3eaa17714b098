"""Average pooling: every frame is reduced to a coarser grid of about the same proportions."""

import math

import torch
from torch import Tensor

from sttm.merging.merged import Merged
from sttm.merging.peers.grouping import merge_groups


def pool_frames(x_THWC: Tensor, target: int) -> Merged:
    """Average the cells of each bin of a coarser h x w grid. Every cell belongs to exactly one bin.

    For an even side, halving it this way equals bilinear interpolation to half its size.
    """
    T, H, W, _ = x_THWC.shape
    h, w = _pooled_sides(H, W, target // T)
    first_y, height = _bins(H, h, x_THWC.device)
    first_x, width = _bins(W, w, x_THWC.device)
    frame = torch.arange(T, device=x_THWC.device)[:, None, None] * (H * W)
    place = (frame + first_y[:, None] * W + first_x).flatten()
    size = torch.stack(torch.meshgrid(height, width, indexing="ij"), -1).flatten(0, 1).repeat(T, 1)
    return merge_groups(x_THWC, place, target=target, box_size_N2=size)


def _pooled_sides(H: int, W: int, most: int) -> tuple[int, int]:
    """Sides (h, w) in about the proportions of H x W, with h * w <= max(1, most)."""
    most = max(1, most)
    h = min(most, max(1, math.floor(H * math.sqrt(most / (H * W)))))
    w = min(W, most // h)
    return min(H, most // w), w


def _bins(side: int, bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each position of a side: where its bin begins, and how long that bin is; int64 [side] each."""
    position = torch.arange(side, device=device)
    begin = -(-torch.arange(bins + 1, device=device) * side // bins)
    own = position * bins // side
    return begin[own], (begin[1:] - begin[:-1])[own]
