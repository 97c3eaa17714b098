"""The last step of every peer method: average each group of cells into one token.

Shapes: T frames of H x W cells, N = T*H*W, C channels.
"""

import torch
from torch import Tensor

from sttm.merging.merged import Merged, weighted_sum


def merge_groups(
    x_THWC: Tensor,
    place_N: Tensor,
    *,
    target: int | None,
    weights_N: Tensor | None = None,
    box_size_N2: Tensor | None = None,
    threshold: float | None = None,
) -> Merged:
    """Average each group of cells into one token.

    Args:
        x_THWC: features of all cells.
        place_N: int64, raster index of the first cell of each cell's group; -1 drops the cell.
        target: number of tokens asked for, which is recorded in the result.
        weights_N: float32, weight of each cell within its group. None takes the plain mean.
        box_size_N2: int64, (height, width) of the box whose top-left cell this is. None makes each box a single cell.
        threshold: lowest cosine accepted, for methods that have a threshold.
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
