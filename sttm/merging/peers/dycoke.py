"""DyCoke's token temporal merging (arXiv 2411.15024, stage 1), for any number of frames."""

import torch
from torch import Tensor

from sttm.merging.merged import Merged
from sttm.merging.peers.grouping import merge_groups
from sttm.merging.peers.shares import share_evenly


def merge_dycoke(x_THWC: Tensor, target: int) -> Merged:
    """Drop, in windows of four frames, the tokens that a frame before already shows.

    The first frame of a window stays whole. The second and third are compared with the first, the fourth with the
    third, cell by cell. In each of these frames only the least similar tokens stay, equally many in every frame. A
    token that goes is represented by the token it was compared with, whose features do not change: the weight of the
    token that goes is 0.
    """
    T, H, W, _ = x_THWC.shape
    P, N = H * W, T * H * W
    x_TPC = x_THWC.flatten(1, 2)
    followers = [t for t in range(T) if t % 4]
    counts = share_evenly(max(0, target - (T - len(followers)) * P), max(1, len(followers)))
    place = torch.arange(N, device=x_THWC.device).view(T, P)
    for t, count in zip(followers, counts, strict=False):
        model = t - 2 if t % 4 == 2 else t - 1
        similarity = torch.cosine_similarity(x_TPC[t].float(), x_TPC[model].float(), dim=-1)
        goes = similarity.sort(stable=True).indices[count:]
        place[t, goes] = place[model, goes]
    flat = place.flatten()
    stays = flat == torch.arange(N, device=flat.device)
    return merge_groups(x_THWC, flat, target=target, weights_N=stays.float())
