"""Masks of all shapes and glyphs, computed once, so that drawing a thing is a lookup.

A mask is [MASK, MASK] over the square from −1 to 1 around the centre; 1 means covered.
"""

from functools import lru_cache

import torch

from sttm.synthetic.vocabulary import GLYPHS, SHAPES

MASK = 128
SUPERSAMPLE = 4
SPRITES = (*SHAPES, *GLYPHS)


@lru_cache(maxsize=1)
def masks() -> torch.Tensor:
    """float32 [len(SPRITES), MASK, MASK], in the order of `SPRITES`."""
    side = MASK * SUPERSAMPLE
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = [_shape(name, x, y) for name in SHAPES] + [_glyph(rows, x, y) for rows in GLYPHS.values()]
    stacked = torch.stack(inside).float()[:, None]
    return torch.nn.functional.avg_pool2d(stacked, SUPERSAMPLE)[:, 0]


def _shape(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    radius = (x * x + y * y).sqrt()
    if name == "circle":
        return radius < 0.95
    if name == "ring":
        return (radius < 0.98) & (radius > 0.52)
    if name == "square":
        return (x.abs() < 0.84) & (y.abs() < 0.84)
    if name == "diamond":
        return (x.abs() / 0.8 + y.abs()) < 1.0
    if name == "cross":
        return ((x.abs() < 0.3) & (y.abs() < 0.95)) | ((y.abs() < 0.3) & (x.abs() < 0.95))
    if name == "triangle":
        return (y < 0.8) & (x.abs() < (y + 0.95) * 0.55)
    assert name == "star", name
    # In a five-pointed star the edge comes closer to the centre as the angle goes from a tip to the notch beside it.
    turn = torch.remainder(torch.atan2(x, -y), 2 * torch.pi / 5)
    from_tip = torch.minimum(turn, 2 * torch.pi / 5 - turn) / (torch.pi / 5)
    return radius < 1.0 / (1.0 + 1.35 * from_tip)


def _glyph(rows: tuple[str, ...], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    bitmap = torch.tensor([[cell == "1" for cell in row] for row in rows])
    column = ((x / 0.56 + 1) / 2 * 5).floor().long()
    row = ((y / 0.8 + 1) / 2 * 7).floor().long()
    within = (column >= 0) & (column < 5) & (row >= 0) & (row < 7)
    return within & bitmap[row.clamp(0, 6), column.clamp(0, 4)]
