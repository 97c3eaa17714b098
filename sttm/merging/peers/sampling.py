"""Baselines that keep some tokens unchanged and drop the others: evenly spaced frames, or random cells.

Shapes: T frames of H x W cells, N = T*H*W, C channels.
"""

import math

import torch
from torch import Tensor


def sample_frames(x_THWC: Tensor, target: int) -> Tensor:
    """Keep as many evenly spaced frames as fit into `target` tokens, at least one.

    Returns:
        int64 [N]: the raster index of each cell that stays, -1 for each cell that is dropped.
    """
    T, H, W, _ = x_THWC.shape
    count = max(1, target // (H * W))
    frames = torch.tensor([(2 * i + 1) * T // (2 * count) for i in range(count)], device=x_THWC.device)
    place = torch.arange(T * H * W, device=x_THWC.device).view(T, H * W)
    sampled = torch.full_like(place, -1)
    sampled[frames] = place[frames]
    return sampled.flatten()


def sample_cells(x_THWC: Tensor, target: int, seed: int) -> Tensor:
    """Keep `target` random cells: the same ones for the same seed and N on every device.

    Returns:
        int64 [N]: the raster index of each cell that stays, -1 for each cell that is dropped.
    """
    N = math.prod(x_THWC.shape[:3])
    chosen = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:target]
    place = torch.full((N,), -1)
    place[chosen] = chosen
    return place.to(x_THWC.device)
