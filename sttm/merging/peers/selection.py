"""From 'which place does each cell go to' to `Merged`: what every peer ends with. Shapes as in `merged`."""

import torch
from torch import Tensor

from sttm.merging.merged import Merged, weighted_sum


def collect(
    x_THWC: Tensor,
    place_N: Tensor,
    *,
    target: int | None,
    weights_N: Tensor | None = None,
    box_size_N2: Tensor | None = None,
    threshold: float | None = None,
) -> Merged:
    """`Merged` of the cells grouped by `place_N`, the raster index of each group's first cell; -1 drops a cell.

    Args:
        target: tokens asked for.
        weights_N: weight of each cell in its group; by default the plain mean.
        box_size_N2: (height, width) of the box at each place; by default a single cell.
        threshold: lowest cosine accepted, for methods that have one.
    """
    T, H, W, C = x_THWC.shape
    N = T * H * W
    kept = place_N >= 0
    index = place_N[kept].unique()
    survivor = torch.where(kept, torch.searchsorted(index, place_N), -1)
    patches = survivor[kept].bincount(minlength=len(index))
    if weights_N is None:
        weights_N = torch.where(kept, 1 / patches[survivor], 0.0)
    y, x = index % (H * W) // W, index % W
    size = torch.ones_like(index)[:, None].expand(-1, 2) if box_size_N2 is None else box_size_N2[index]
    boxes = torch.stack([index // (H * W), y, x, y + size[:, 0], x + size[:, 1]], 1)
    return Merged(
        features=weighted_sum(x_THWC.reshape(N, C), survivor, weights_N, len(index)),
        boxes=boxes.int(),
        patches=patches.int(),
        index=index,
        survivor=survivor,
        weights=weights_N,
        spatial_threshold=threshold,
        target=target,
    )
