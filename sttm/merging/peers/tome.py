"""ToMe: bipartite soft matching (Bolya et al., arXiv 2210.09461), over a video or frame by frame.

Rounds of matching until the target: tokens alternate between two sets, each of the first finds its most similar in the
second, the most similar pairs become their size-weighted mean. A round removes half of the tokens at most. Tokens stay
sorted by their earliest cell. Similar means the cosine of the features themselves: there are no attention keys here.

Shapes: N cells, n tokens of the current round, C channels.
"""

import torch
from torch import Tensor

_SIMILARITIES_AT_ONCE = 1 << 26


def match_tokens(x_NC: Tensor, target: int) -> Tensor:
    """int64 [N]: earliest cell of the token each cell ends in; exactly max(1, target) tokens are left."""
    sums = x_NC.float()  # of each token's cells: for a cosine as good as their mean
    earliest = token = torch.arange(len(x_NC), device=x_NC.device)
    while len(sums) > max(1, target):
        into = _match_once(sums, min(len(sums) - max(1, target), len(sums) // 2))
        first = earliest.scatter_reduce(0, into, earliest, "amin")
        left, row = first[into].unique(return_inverse=True)
        sums = torch.zeros(len(left), sums.shape[1], device=sums.device).index_add_(0, row, sums)
        earliest, token = left, row[token]
    return earliest[token]


def _match_once(x_nC: Tensor, removed: int) -> Tensor:
    """int64 [n]: the token each one goes into after `removed` tokens of even position joined one of odd position."""
    unit = torch.nn.functional.normalize(x_nC, dim=1)
    best, partner = _most_similar(unit[::2], unit[1::2])
    joins = best.sort(descending=True, stable=True).indices[:removed]
    into = torch.arange(len(unit), device=unit.device)
    into[2 * joins] = 2 * partner[joins] + 1
    return into


def _most_similar(a_nC: Tensor, b_mC: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of `a` the highest inner product with a row of `b` [n], and that row [n]; memory is bounded."""
    step = max(1, _SIMILARITIES_AT_ONCE // len(b_mC))
    found = [(part @ b_mC.T).max(1) for part in a_nC.split(step)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
