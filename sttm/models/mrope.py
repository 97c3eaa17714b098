"""Positions of a multimodal prompt under M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1): three axes (time, y, x).

Text advances all three axes by one for each token. A block of visual tokens is a box of positions that starts where the
text before it ended. The text after the block continues at the largest position so far plus one, as in the training of
the models.

transformers 4 did the same. transformers 5 continues after a block at its start + max(H, W). That is the same for a
block of one frame (Qwen3-VL). For a video it overlaps the positions of the block's later frames, and it differs between
a full forward and a continuation from a cache. So positions are computed here, stored with the cache, and always passed
to the model.
"""

from itertools import groupby

import torch
from torch import Tensor


def mrope_positions(is_visual: Tensor, block: tuple[int, int, int], time_step: float = 1.0) -> tuple[Tensor, int]:
    """Number a sequence of text tokens and visual blocks.

    Args:
        is_visual: bool [L]; every run of True is one block.
        block: (T, H, W) of each block, which has T*H*W tokens in raster order.
        time_step: positions between two frames of a block. Frame t gets position floor(t * time_step), as in training.

    Returns:
        Position ids int64 [3, L] on the device of `is_visual`, and the next free position.

    Raises:
        ValueError: a run of visual tokens does not have T*H*W tokens.

    Example: two text tokens, a 1x1x2 block, one text token -> time 0 1 2 2 4, y 0 1 2 2 4, x 0 1 2 3 4; next 5.
    """
    # Frame times were divided and multiplied back, so a position that means 4 may come as 3.9999998.
    times = (torch.arange(block[0], dtype=torch.float64) * time_step + 1e-4).floor().long()
    box = torch.meshgrid(times, torch.arange(block[1]), torch.arange(block[2]), indexing="ij")
    cells = torch.stack(box).reshape(3, -1)
    parts, start = [], 0
    for visual, run in groupby(is_visual.tolist()):
        length = len(list(run))
        if visual and length != cells.shape[1]:
            raise ValueError(f"a run of {length} visual tokens is not a block of {block[0]}x{block[1]}x{block[2]}")
        part = (cells if visual else torch.arange(length).expand(3, -1)) + start
        parts.append(part)
        start = int(part.max()) + 1
    return torch.cat(parts, dim=1).to(is_visual.device), start
