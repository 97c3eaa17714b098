"""Keys and values of the rows' own tokens, in buffers that are made once and filled from the front."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

_STEP = 64  # tokens; buffers are seen in such steps, so that one shape serves many decode steps


class OwnTokens:
    """Per layer [B, heads, room, D]; what a decoder layer takes for its cache.

    Args:
        keys: of the video, [heads, tokens, D] a layer: heads, size, dtype and device are theirs.
        rows: B.

    Attributes:
        columns: int64 [Q], where the next tokens go.
        shown: tokens of a row that a layer gets to attend to, unfilled ones among them (zeros, for the mask to hide).
    """

    def __init__(self, keys: Sequence[Tensor], rows: int) -> None:
        self.columns, self.shown = torch.empty(0, dtype=torch.long), 0
        self._keys = [key.new_zeros(rows, key.shape[0], 0, key.shape[2]) for key in keys]
        self._values = list(self._keys)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Put the new tokens' keys and values in their columns; give back those to attend to."""
        columns = self.columns.to(keys.device)
        for buffer, new in ((self._keys[layer], keys), (self._values[layer], values)):
            buffer.index_copy_(2, columns, new)
        return self._keys[layer][:, :, : self.shown], self._values[layer][:, :, : self.shown]

    @staticmethod
    def seen(tokens: int) -> int:
        """What to show where each row has so many tokens."""
        return -(-tokens // _STEP) * _STEP

    def make_room(self, tokens: int) -> None:
        """Let each row hold so many tokens; larger buffers are half as large again, so that copies stay rare."""
        room = self._keys[0].shape[2]
        if tokens <= room:
            return
        larger = self.seen(max(tokens, room + room // 2))
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = old.new_zeros(*old.shape[:2], larger, old.shape[3])
                buffers[layer][:, :, :room] = old

    def copy(self) -> "OwnTokens":
        """Another that can `keep` other rows and grow; until then both hold the same buffers."""
        other = copy(self)
        other._keys, other._values = list(self._keys), list(self._values)
        return other

    def keep(self, rows: Tensor) -> None:
        """Drop all but these rows, int64 [kept]."""
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = old.index_select(0, rows.to(old.device))
