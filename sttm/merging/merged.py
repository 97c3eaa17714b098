"""The result of a merge: the merged features, and which survivor each cell went to.

Shapes: T frames of H x W cells, N = T*H*W, C channels, M survivors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_ELEMENTS_AT_ONCE = 1 << 20  # keeps the float32 copy in cache


@dataclass(frozen=True)
class Merged:
    """The surviving tokens of one video, in the order (t, y, x) of their top-left cells.

    Attributes:
        features: [M, C], in the dtype of the input; sums were taken in float32.
        boxes: int32 [M, 5], half-open box (t, y0, x0, y1, x1) of each survivor's earliest member, in grid cells.
        patches: int32 [M], how many cells each survivor stands for.
        index: int64 [M], raster index t*H*W + y*W + x of the top-left cell of each box.
        survivor: int64 [N], the row of `features` that each cell went to; -1 if the method dropped the cell.
        weights: float32 [N], weight of each cell in its survivor; 0 for a dropped cell.
        spatial_threshold: lowest cosine at which a node was kept whole; None if the step was off or did nothing.
        temporal_threshold: lowest cosine at which nodes were linked; None if the step was off or did nothing.
        target: number of tokens that the budget allowed; None if there was no budget.
    """

    features: Tensor
    boxes: Tensor
    patches: Tensor
    index: Tensor
    survivor: Tensor
    weights: Tensor
    spatial_threshold: float | None = None
    temporal_threshold: float | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        M, N = len(self.features), len(self.survivor)
        shapes = [self.boxes.shape, self.patches.shape, self.index.shape, self.weights.shape]
        if shapes != [(M, 5), (M,), (M,), (N,)] or self.features.ndim != 2:
            raise ValueError(f"Merged of {M} survivors and {N} cells: boxes, patches, index, weights have {shapes}")

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        return (
            f"Merged({len(self)} of {len(self.survivor)} tokens, features {tuple(self.features.shape)} "
            f"{self.features.dtype}, thresholds {self.spatial_threshold}, {self.temporal_threshold})"
        )

    @property
    def retained_ratio(self) -> float:
        return len(self) / len(self.survivor)

    @property
    def over_target(self) -> int:
        """Number of tokens kept beyond the budget because the threshold floor or the method allowed no more merging."""
        return 0 if self.target is None else max(0, len(self) - self.target)

    def apply(self, x: Tensor) -> Tensor:
        """Merge another tensor of the same cells in the same way: [T, H, W, C'] or [N, C'] -> [M, C'].

        Sums are taken in float32. The result has the dtype of `x`, or float32 if `x` holds integers.

        Raises:
            ValueError: `x` has another number of cells.
        """
        N = len(self.survivor)
        cells_NC = x.reshape(-1, x.shape[-1])
        if len(cells_NC) != N:
            raise ValueError(f"apply: {tuple(x.shape)} holds {len(cells_NC)} cells, but this merge was made for {N}")
        return weighted_sum(cells_NC, self.survivor, self.weights, len(self))


def weighted_sum(x_NC: Tensor, row_N: Tensor, weight_N: Tensor, rows: int) -> Tensor:
    """[rows, C]: the sum of weight * x over the cells of each row, taken in float32. Cells with row -1 are left out."""
    if x_NC.is_cuda and x_NC.is_floating_point():
        from sttm.merging import triton_kernels

        return triton_kernels.row_sums(x_NC, row_N, weight_N, rows)
    N, C = x_NC.shape
    to_row_N = torch.where(row_N < 0, rows, row_N)
    out_MC = torch.zeros(rows + 1, C, dtype=torch.float32, device=x_NC.device)
    step = max(1, _ELEMENTS_AT_ONCE // max(1, C))
    for start in range(0, N, step):
        part = slice(start, start + step)
        out_MC.index_add_(0, to_row_N[part], (x_NC[part] * weight_N[part, None]).float())
    return out_MC[:rows].to(x_NC.dtype if x_NC.is_floating_point() else torch.float32)
