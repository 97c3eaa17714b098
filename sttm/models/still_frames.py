"""Find the grid frames of a video that look like an earlier one, so that they need not be encoded again.

The vision towers of all families encode each grid frame by itself: their attention does not reach from one to another,
and their position embeddings tell places, not times. So equal grid frames have equal features, and one of them is
enough. Slides, screens and cartoons have many; film and cameras with noise have almost none.

A copied feature is exactly what the tower computed for the frame that it is copied from. Encoded on its own, the equal
frame would have the same feature up to the rounding of sums: a matrix product of another size may add in another order.

A grid frame is one sampled frame, or two for Qwen models, which is the unit that the vision tower encodes.
"""

from collections.abc import Sequence

import blake3
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 28  # side in pixels of the blocks that are compared, about one visual token


def first_alike(pixels: NDArray[np.uint8] | Tensor, frames_a_token: int, levels: float = 0.0) -> NDArray[np.int64]:
    """For each grid frame the one whose features it can take: the first one that looks like it, or itself.

        pictures a a b b a c, one in a grid frame -> 0 0 2 2 0 5

    Args:
        pixels: uint8 [F, H', W', 3], resized frames.
        frames_a_token: sampled frames in one grid frame. The last frame is repeated if it lacks others.
        levels: 0 asks for equal pixels. Above 0 a grid frame also looks like the one before it, or the one whose
            features that takes, if no block of 28x28 pixels differs by more than so many levels (of 255) on average. An
            average over the whole picture would overlook small things that move.

    Returns:
        int64 [T], where `first[first] == first`.
    """
    last = len(pixels) - 1
    groups = np.minimum(np.arange(0, len(pixels), frames_a_token)[:, None] + np.arange(frames_a_token), last)
    equal = _equal_on_gpu(pixels, groups) if isinstance(pixels, Tensor) else _equal_on_cpu(pixels, groups)
    return equal if levels <= 0 else _nearly_equal(torch.as_tensor(pixels), groups, equal, levels)


def _equal_on_cpu(pixels: NDArray[np.uint8], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first grid frame with the same digests of its frames, for each grid frame."""
    return _first_of_each([blake3.blake3(np.ascontiguousarray(frame).data).digest() for frame in pixels], groups)


def _equal_on_gpu(pixels: Tensor, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first equal grid frame for each grid frame; waits twice for the GPU.

    Random sums of the pixels find candidates, whose pixels are then compared.
    """
    generator = torch.Generator(pixels.device).manual_seed(0)
    factors = torch.randint(-(1 << 62), 1 << 62, pixels.shape[1:], generator=generator, device=pixels.device)
    first = _first_of_each(torch.stack([(frame * factors).sum() for frame in pixels]).tolist(), groups)
    if (repeated := np.flatnonzero(first < np.arange(len(first)))).size:
        pairs = ((groups[number].tolist(), groups[first[number]].tolist()) for number in repeated)
        differs = torch.stack([(pixels[ours] != pixels[theirs]).any() for ours, theirs in pairs]).cpu().numpy()
        first[repeated[differs]] = repeated[differs]
    return first


def _first_of_each(signatures: Sequence[bytes] | Sequence[int], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first grid frame whose frames have the same signatures, for each grid frame."""
    seen: dict[tuple[bytes | int, ...], int] = {}
    keys = (tuple(signatures[frame] for frame in group) for group in groups.tolist())
    return np.array([seen.setdefault(key, number) for number, key in enumerate(keys)], np.int64)


def _nearly_equal(
    pixels: Tensor, groups: NDArray[np.int64], equal: NDArray[np.int64], levels: float
) -> NDArray[np.int64]:
    """Add near equality to equality: each grid frame is compared with the one whose features its predecessor takes.

    So a slow change is noticed in the end, because it is measured against the frame that was encoded.
    """
    first, encoded = equal.copy(), 0
    for number, group in enumerate(groups.tolist()):
        if equal[number] < number:
            encoded = int(first[equal[number]])
        elif number and not _worst_block(pixels[group], pixels[groups[encoded].tolist()]) <= levels:
            encoded = number
        first[number] = encoded
    return first


def _worst_block(a: Tensor, b: Tensor) -> float:
    """The largest mean absolute difference of two grid frames uint8 [n, H', W', 3] in a block of pixels, in levels."""
    difference = (torch.maximum(a, b) - torch.minimum(a, b)).flatten(2)
    rows = torch.stack([band.sum((0, 1), dtype=torch.int32) for band in difference.split(_BLOCK, dim=1)])
    blocks = torch.stack([block.sum(1) for block in rows.split(3 * _BLOCK, dim=1)], dim=1)
    heights, widths = (torch.tensor([min(_BLOCK, side - at) for at in range(0, side, _BLOCK)]) for side in a.shape[1:3])
    values = (heights[:, None] * widths * 3 * len(a)).to(blocks.device)
    return float((blocks / values).max())
