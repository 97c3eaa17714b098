"""Positions of a multimodal prompt under M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1): one index a (time, y, x).

Text counts on all three axes at once. A block of visual tokens is laid out as a box that starts where the text before
it ended; what follows goes on at the largest position used so far plus one, as the models were trained.

transformers 4 did the same. transformers 5 goes on after a block at its start + max(H, W), which is the same for one
frame (Qwen3-VL) but overlaps the block's own later frames for a video, and differs between a full forward and a
continuation from a cache. So positions are made here, stored with the cache, and always passed explicitly.
"""

from itertools import groupby

import torch
from torch import Tensor


def mrope_positions(is_visual: Tensor, block: tuple[int, int, int], time_step: float = 1.0) -> tuple[Tensor, int]:
    """Number a sequence of text and visual blocks.

    Args:
        is_visual: bool [L]; every run of True is one block.
        block: (T, H, W) of each block, T*H*W tokens in raster order.
        time_step: positions between two frames of a block; rounded down after multiplying, as in training.

    Returns:
        Position ids int64 [3, L] on `is_visual`'s device, and the next free position.

    Example: two text tokens, a 1x1x2 block, one text token -> time 0 1 2 2 4, y 0 1 2 2 4, x 0 1 2 3 4; next 5.
    """
    # A step such as 3.9999998 comes from times that were divided and multiplied back: it means 4.
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
