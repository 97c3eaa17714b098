"""Keys and values of the tokens that follow a video, the question's and the answer's, in growing buffers."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

_STEP = 64  # tokens; a layer sees a multiple of them, so that one shape serves many decode steps


class QuestionCache:
    """What a decoder layer takes for its cache: keys and values [B, heads, room, D] of the tokens after the video.

    Args:
        keys: the video's keys, [heads, tokens, D] a layer. The buffers get the same heads, D, dtype and device.
        rows: B, the number of questions.

    Attributes:
        columns: int64 [Q], the columns of the buffers that the next tokens go to.
        shown: how many columns a layer attends to. Unfilled columns among them hold zeros and must be masked.
    """

    def __init__(self, keys: Sequence[Tensor], rows: int) -> None:
        self.columns, self.shown = torch.empty(0, dtype=torch.long), 0
        self._keys = [key.new_zeros(rows, key.shape[0], 0, key.shape[2]) for key in keys]
        self._values = list(self._keys)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values [B, heads, Q, D]. Returns all that the layer attends to."""
        columns = self.columns.to(keys.device)
        for buffer, new in ((self._keys[layer], keys), (self._values[layer], values)):
            buffer.index_copy_(2, columns, new)
        return self._keys[layer][:, :, : self.shown], self._values[layer][:, :, : self.shown]

    @staticmethod
    def seen(tokens: int) -> int:
        """How many columns to show where each row holds this many tokens."""
        return -(-tokens // _STEP) * _STEP

    def make_room(self, tokens: int) -> None:
        """Let each row hold this many tokens. Buffers grow by at least a half, so that they are copied rarely."""
        room = self._keys[0].shape[2]
        if tokens <= room:
            return
        larger = self.seen(max(tokens, room + room // 2))
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = old.new_zeros(*old.shape[:2], larger, old.shape[3])
                buffers[layer][:, :, :room] = old

    def copy(self) -> "QuestionCache":
        """A cache that shares the buffers until either one calls `keep` or `make_room`."""
        other = copy(self)
        other._keys, other._values = list(self._keys), list(self._values)
        return other

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, int64 [kept]."""
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = old.index_select(0, rows.to(old.device))
