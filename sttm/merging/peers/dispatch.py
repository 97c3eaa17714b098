"""Run one of the peer methods by its name. No method sees the question, so the result can be cached.

| method | works on | tokens left under a target of K out of N = T*P |
|---|---|---|
| tome | the whole video | K |
| tome_frame | each frame, with an even share of K | K, but at least one a frame |
| dycoke | windows of 4 frames | K, but at least the first frame of every window: ceil(T/4) frames |
| uniform | frames | whole frames only: floor(K / P) * P, but at least one frame |
| pooling | each frame | T * h * w, the largest h x w in the frame's proportions that fits, but at least T |
| random | cells | K |
| octree | space and time together | K - 6 to K, but at least the roots of the tree |

Shapes: T frames of H x W cells, P = H*W, N = T*P, C channels.
"""

import math

import torch
from torch import Tensor

from sttm.merging.config import MergeConfig
from sttm.merging.merged import Merged
from sttm.merging.peers.dycoke import merge_dycoke
from sttm.merging.peers.grouping import merge_groups
from sttm.merging.peers.octree import merge_octree
from sttm.merging.peers.pooling import pool_frames
from sttm.merging.peers.sampling import sample_cells, sample_frames
from sttm.merging.peers.tome import match_tokens, match_tokens_by_frame


def merge_by_peer(x_THWC: Tensor, config: MergeConfig) -> Merged:
    """Reduce a video with `config.method` to the target of `config`. A video within the target stays as it is."""
    N = math.prod(x_THWC.shape[:3])
    target = config.target(N)
    if target is None or target >= N:
        return merge_groups(x_THWC, torch.arange(N, device=x_THWC.device), target=target)
    match config.method:
        case "tome":
            place = match_tokens(x_THWC.flatten(0, 2), target)
        case "tome_frame":
            place = match_tokens_by_frame(x_THWC, target)
        case "dycoke":
            return merge_dycoke(x_THWC, target)
        case "uniform":
            place = sample_frames(x_THWC, target)
        case "pooling":
            return pool_frames(x_THWC, target)
        case "random":
            place = sample_cells(x_THWC, target, config.seed)
        case "octree":
            return merge_octree(x_THWC, config.root_level, target)
        case _:
            raise AssertionError(f"{config.method} is no peer")
    return merge_groups(x_THWC, place, target=target)
