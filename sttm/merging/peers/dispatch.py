"""Peers of the merge behind the same interface, for evaluation. All are blind to the question, so all can be cached.

| method | of | count under a target K of N = T*P tokens |
|---|---|---|
| tome | whole video | K |
| tome_frame | each frame, its even share of K | K, at least T |
| dycoke | windows of 4 frames | K, at least the ceil(T/4) frames that open a window |
| uniform | frames | whole frames only: floor(K / P) * P, at least P |
| pooling | each frame | T * (h * w), the largest h x w of the frame's shape that fits; at least T |
| random | cells | K |
| octree | space and time jointly | K - 6 to K, at least the roots |

Shapes: T frames of H x W cells, P = H*W, N = T*P, C channels.
"""

import math

import torch
from torch import Tensor

from sttm.merging.config import MergeConfig
from sttm.merging.merged import Merged
from sttm.merging.peers.octree import merge_octree
from sttm.merging.peers.selection import collect
from sttm.merging.peers.tome import match_tokens


def merge_by_peer(x_THWC: Tensor, config: MergeConfig) -> Merged:
    """`config.method` at the target of `config`; a video that already fits is left alone."""
    N = math.prod(x_THWC.shape[:3])
    target = config.target(N)
    if target is None or target >= N:
        return collect(x_THWC, torch.arange(N, device=x_THWC.device), target=target)
    match config.method:
        case "tome":
            place = match_tokens(x_THWC.flatten(0, 2), target)
        case "tome_frame":
            place = tome_by_frame(x_THWC, target)
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
    return collect(x_THWC, place, target=target)


def share_evenly(total: int, parts: int) -> list[int]:
    """`total` in `parts` numbers that differ by at most one, the larger ones spread out: 7 in 3 -> [2, 2, 3]."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def tome_by_frame(x_THWC: Tensor, target: int) -> Tensor:
    """int64 [N]: the place each cell goes to when ToMe reduces every frame by itself."""
    T, H, W, _ = x_THWC.shape
    counts = share_evenly(target, T)
    places = [match_tokens(x_THWC[t].flatten(0, 1), counts[t]) + t * H * W for t in range(T)]
    return torch.cat(places)


def merge_dycoke(x_THWC: Tensor, target: int) -> Merged:
    """Token temporal merging, stage 1 of DyCoke (arXiv 2411.15024), for any number of frames.

    In each window of four frames the first stays whole. The second and third are compared with the first, the fourth
    with the third, place by place; of each only the least similar tokens stay, equally many in every frame. A token
    that goes is represented by the one it was compared with, whose features do not change (its weight is 0).
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
    return collect(x_THWC, flat, target=target, weights_N=stays.float())


def sample_frames(x_THWC: Tensor, target: int) -> Tensor:
    """int64 [N]: cells of evenly spaced frames stay, -1 for the rest; as many frames as fit, at least one."""
    T, H, W, _ = x_THWC.shape
    count = max(1, target // (H * W))
    frames = torch.tensor([(2 * i + 1) * T // (2 * count) for i in range(count)], device=x_THWC.device)
    place = torch.arange(T * H * W, device=x_THWC.device).view(T, H * W)
    sampled = torch.full_like(place, -1)
    sampled[frames] = place[frames]
    return sampled.flatten()


def sample_cells(x_THWC: Tensor, target: int, seed: int) -> Tensor:
    """int64 [N]: `target` random cells stay, -1 for the rest; the same for a seed and N on every device."""
    N = math.prod(x_THWC.shape[:3])
    chosen = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:target]
    place = torch.full((N,), -1)
    place[chosen] = chosen
    return place.to(x_THWC.device)


def pool_frames(x_THWC: Tensor, target: int) -> Merged:
    """Mean over a coarser h x w grid of about the frame's shape; every cell belongs to one bin.

    Halving an even side this way equals bilinear interpolation to half its size.
    """
    T, H, W, _ = x_THWC.shape
    h, w = _pooled_sides(H, W, target // T)
    first_y, height = _bins(H, h, x_THWC.device)
    first_x, width = _bins(W, w, x_THWC.device)
    frame = torch.arange(T, device=x_THWC.device)[:, None, None] * (H * W)
    place = (frame + first_y[:, None] * W + first_x).flatten()
    size = torch.stack(torch.meshgrid(height, width, indexing="ij"), -1).flatten(0, 1).repeat(T, 1)
    return collect(x_THWC, place, target=target, box_size_N2=size)


def _pooled_sides(H: int, W: int, most: int) -> tuple[int, int]:
    """Sides of about the shape of H x W, with h * w <= max(1, most)."""
    most = max(1, most)
    h = min(most, max(1, math.floor(H * math.sqrt(most / (H * W)))))
    w = min(W, most // h)
    return min(H, most // w), w


def _bins(side: int, bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each position of a side: where its bin begins, and how long that bin is."""
    position = torch.arange(side, device=device)
    begin = -(-torch.arange(bins + 1, device=device) * side // bins)
    own = position * bins // side
    return begin[own], (begin[1:] - begin[:-1])[own]
