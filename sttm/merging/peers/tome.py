"""ToMe: bipartite soft matching (Bolya et al., arXiv 2210.09461), over a whole video or frame by frame.

Matching is repeated until the target is reached. In each round tokens alternate between two sets, each token of the
first set finds its most similar token in the second set, and the most similar pairs are merged into their
size-weighted mean. A round removes at most half of the tokens. Tokens stay sorted by their earliest cell. Similarity
is the cosine of the features themselves, because attention keys do not exist here.

Shapes: T frames of H x W cells, N cells, n and m tokens of the current round, C channels.
"""

import torch
from torch import Tensor

from sttm.merging.peers.shares import share_evenly

_SIMILARITIES_AT_ONCE = 1 << 26


def match_tokens(x_NC: Tensor, target: int) -> Tensor:
    """int64 [N]: earliest cell of the token that each cell ends in; exactly max(1, target) tokens are left."""
    sums = x_NC.float()  # sum over the cells of each token; its cosines equal those of the mean
    earliest = token = torch.arange(len(x_NC), device=x_NC.device)
    while len(sums) > max(1, target):
        into = _match_once(sums, min(len(sums) - max(1, target), len(sums) // 2))
        first = earliest.scatter_reduce(0, into, earliest, "amin")
        left, row = first[into].unique(return_inverse=True)
        sums = torch.zeros(len(left), sums.shape[1], device=sums.device).index_add_(0, row, sums)
        earliest, token = left, row[token]
    return earliest[token]


def match_tokens_by_frame(x_THWC: Tensor, target: int) -> Tensor:
    """int64 [N]: earliest cell of the token that each cell ends in when every frame is reduced by itself."""
    T, H, W, _ = x_THWC.shape
    counts = share_evenly(target, T)
    places = [match_tokens(x_THWC[t].flatten(0, 1), counts[t]) + t * H * W for t in range(T)]
    return torch.cat(places)


def _match_once(x_nC: Tensor, removed: int) -> Tensor:
    """One round, in which `removed` tokens at even positions each join a token at an odd position.

    Returns:
        int64 [n]: position of the token that each token goes into; its own if it stays.
    """
    unit = torch.nn.functional.normalize(x_nC, dim=1)
    best, partner = _most_similar(unit[::2], unit[1::2])
    joins = best.sort(descending=True, stable=True).indices[:removed]
    into = torch.arange(len(unit), device=unit.device)
    into[2 * joins] = 2 * partner[joins] + 1
    return into


def _most_similar(a_nC: Tensor, b_mC: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of `a`: its highest inner product with a row of `b` [n], and the number of that row [n].

    The products are computed in parts, so that memory stays bounded.
    """
    step = max(1, _SIMILARITIES_AT_ONCE // len(b_mC))
    found = [(part @ b_mC.T).max(1) for part in a_nC.split(step)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
