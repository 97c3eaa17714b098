"""Turn a stored picture upright: which of the eight turns and mirrorings a display matrix asks for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways in which a stored picture can lie, as the steps that make it upright, in this order.

    Attributes:
        swaps_axes: the picture is transposed: its rows become its columns.
        mirrors_rows: every row is reversed, which mirrors the picture from left to right.
        mirrors_columns: every column is reversed, which turns the picture upside down.
    """

    swaps_axes: bool = False
    mirrors_rows: bool = False
    mirrors_columns: bool = False

    def upright(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, C] as stored -> the upright picture, a view of uint8 [H, W, C] or [W, H, C]."""
        turned = pixels.swapaxes(0, 1) if self.swaps_axes else pixels
        return np.flip(turned, self._mirrored_axes)

    def upright_tensor(self, pixels: Any) -> Any:
        """`upright` for a torch tensor."""
        turned = pixels.swapaxes(0, 1) if self.swaps_axes else pixels
        return turned.flip(self._mirrored_axes) if self._mirrored_axes else turned

    @property
    def _mirrored_axes(self) -> tuple[int, ...]:
        return (0,) * self.mirrors_columns + (1,) * self.mirrors_rows


def read_display_matrix(matrix: bytes) -> Orientation:
    """The orientation that is nearest to a display matrix.

    The matrix [[a, b, u], [c, d, v], [x, y, w]] shows the stored point (p, q) at (a·p + c·q + x, b·p + d·q + y), where
    both axes begin at the top left corner (ISO/IEC 14496-12, 6.2.2).

    Args:
        matrix: the nine numbers as int32 in the byte order of the machine, as FFmpeg gives them.
    """
    a, b, _, c, d = (float(number) for number in np.frombuffer(matrix, np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, mirrors_rows=a < 0, mirrors_columns=d < 0)
    return Orientation(True, mirrors_rows=c < 0, mirrors_columns=b < 0)
