"""The expensive steps of the merge as Triton kernels: all cosines, the best links, and the weighted sums.

The plain torch code in `similarity`, `temporal` and `merged` defines the results; these kernels compute the same
without its copies. They gather the slots of a root while multiplying them, so that the features are read once for the
cosines and once for the sums.

Shapes: T frames, P cells a frame, C channels, N = T*P, R roots, S*S slots and K nodes of a root (see
`sttm.merging.grid`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sttm.gpu import on_its_gpu
from sttm.merging.grid import Grid

_MOST_SLOTS = 64  # slots of a root: the registers of one program hold three 64 x 64 blocks of products
_WINDOW = 64  # cells that are summed together


def fits(grid: Grid) -> bool:
    """Whether `cosines` can handle this grid: the products of one root must fit into one program."""
    return grid.slot_cell.shape[1] <= _MOST_SLOTS


def empty_cosines(T: int, grid: Grid, *, temporal: bool) -> tuple[Tensor, Tensor]:
    """Uninitialised float32 tensors for the results of `cosines`: [T, R, K, K] and [T-1, R, K, K].

    The second tensor has no elements if `temporal` is False.
    """
    R, K, _ = grid.pool.shape
    shape = (R, K, K)
    return grid.pool.new_empty(T, *shape), grid.pool.new_empty(max(0, T - 1) if temporal else 0, *shape)


@on_its_gpu
def cosines(x_TPC: Tensor, grid: Grid, own: Tensor, cross: Tensor) -> None:
    """Compute the cosines between the nodes of each root, within each frame and with the next frame.

    Cosines of features that hold NaN become -2.

    Args:
        x_TPC: features.
        grid: the quadtree over a frame.
        own: float32 [T, R, K, K], receives the cosines within frames.
        cross: float32 [T-1, R, K, K], receives the cosines with the next frame; if it is empty, they are not computed.
    """
    T, P, C = x_TPC.shape
    R, K, slots = grid.pool.shape
    padded = max(16, slots)
    _cosines_kernel[(T * R,)](
        x_TPC.contiguous(),
        grid.slot_cell,
        grid.pool,
        own,
        cross,
        T,
        P,
        C,
        R,
        K,
        slots,
        SLOTS=padded,
        NODES=max(16, triton.next_power_of_2(K)),
        CHANNELS=128 if padded == 16 else 64,
        TEMPORAL=len(cross) > 0,
        num_warps=2 if padded == 16 else 8,
        num_stages=4,
    )


@on_its_gpu
def best_overlaps(place_TP: Tensor, id_TP: Tensor, cross: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """The most similar overlapping node in the frame before, for the node at every place.

    Args:
        place_TP: int64, `Nodes.place`.
        id_TP: int64, `Nodes.id`.
        cross: float32 [T-1, R, K, K], `Similarity.cross`.
        grid: the quadtree over a frame.

    Returns:
        The fields of `Links` for E = N: each place itself, the place of that node, and their cosine.
    """
    T, P = place_TP.shape
    earlier, similarity = torch.empty_like(place_TP.view(-1)), torch.empty(T * P, device=place_TP.device)
    R, K, slots = grid.pool.shape
    _best_overlaps_kernel[(triton.cdiv(T * P, 128),)](
        place_TP, id_TP, cross, grid.slot_cell, grid.node_slot, earlier, similarity, T * P, P, R, K, slots, CELLS=128
    )
    return torch.arange(T * P, device=place_TP.device), earlier, similarity


@on_its_gpu
def row_sums(x_NC: Tensor, row_N: Tensor, weight_N: Tensor, rows: int) -> Tensor:
    """[rows, C] in the dtype of `x_NC`: the float32 sum of weight * x over the cells of each row. Row -1 is left out.

    The cells are sorted by row. Rows can be very long, such as a background that never changes. So windows that lie
    within one row are summed first, by one program each, and no program has much more work than another.
    """
    N, C = x_NC.shape
    x_NC = x_NC.contiguous()
    row, cell = row_N.int().sort(stable=True)
    start = torch.searchsorted(row, torch.arange(rows + 1, device=row.device, dtype=row.dtype))
    windows = N // _WINDOW
    partial = torch.empty(max(1, windows), C, device=x_NC.device)
    out = torch.empty(rows, C, dtype=x_NC.dtype, device=x_NC.device)
    if windows:
        channels = min(128, triton.next_power_of_2(C))
        _window_sums_kernel[(windows, triton.cdiv(C, channels))](
            x_NC, row, cell, weight_N, partial, C, WINDOW=_WINDOW, CELLS=32, CHANNELS=channels
        )
    channels = min(4096, triton.next_power_of_2(C))
    _row_sums_kernel[(rows, triton.cdiv(C, channels))](
        x_NC, cell, start, weight_N, partial, out, C, WINDOW=_WINDOW, CELLS=2, CHANNELS=channels, num_warps=4
    )
    return out


@triton.jit
def _cosines_kernel(
    x_ptr: tl.tensor,
    slot_cell_ptr: tl.tensor,
    pool_ptr: tl.tensor,
    own_ptr: tl.tensor,
    cross_ptr: tl.tensor,
    T: int,
    P: int,
    C: int,
    R: int,
    K: int,
    slots: int,
    SLOTS: tl.constexpr,
    NODES: tl.constexpr,
    CHANNELS: tl.constexpr,
    TEMPORAL: tl.constexpr,
) -> None:
    """One program for each frame and root. SLOTS and NODES are `slots` and K, rounded up to a size for `tl.dot`."""
    t = (tl.program_id(0) // R).to(tl.int64)
    root = tl.program_id(0) % R
    slot = tl.arange(0, SLOTS)
    node = tl.arange(0, NODES)
    channel = tl.arange(0, CHANNELS)
    cell = tl.load(slot_cell_ptr + root * slots + slot, mask=slot < slots, other=0)
    now = (t * P + cell) * C
    later = now + P * C
    has_next = TEMPORAL and t + 1 < T
    own = tl.zeros((SLOTS, SLOTS), tl.float32)
    next_own = tl.zeros((SLOTS, SLOTS), tl.float32)
    cross = tl.zeros((SLOTS, SLOTS), tl.float32)
    for start in range(0, C, CHANNELS):
        inside = (slot[:, None] < slots) & (start + channel[None, :] < C)
        a = tl.load(x_ptr + now[:, None] + start + channel[None, :], mask=inside, other=0.0)
        own = tl.dot(a, tl.trans(a), own, input_precision="ieee")
        if TEMPORAL:
            b = tl.load(x_ptr + later[:, None] + start + channel[None, :], mask=inside & has_next, other=0.0)
            next_own = tl.dot(b, tl.trans(b), next_own, input_precision="ieee")
            cross = tl.dot(a, tl.trans(b), cross, input_precision="ieee")
    pool = tl.load(
        pool_ptr + (root * K + node[:, None]) * slots + slot[None, :],
        mask=(node[:, None] < K) & (slot[None, :] < slots),
        other=0.0,
    )
    out = tl.program_id(0).to(tl.int64) * K * K + node[:, None] * K + node[None, :]
    inside_out = (node[:, None] < K) & (node[None, :] < K)
    products = _pooled(own, pool)
    norm = _norms(products, node)
    tl.store(own_ptr + out, _cosine(products, norm, norm), mask=inside_out)
    if has_next:
        next_norm = _norms(_pooled(next_own, pool), node)
        tl.store(cross_ptr + out, _cosine(_pooled(cross, pool), norm, next_norm), mask=inside_out)


@triton.jit
def _pooled(products: tl.tensor, pool: tl.tensor) -> tl.tensor:
    """Inner products between nodes, from inner products between slots."""
    half = tl.dot(pool, products, input_precision="ieee")
    return tl.dot(half, tl.trans(pool), input_precision="ieee")


@triton.jit
def _norms(products: tl.tensor, node: tl.tensor) -> tl.tensor:
    """Norms of the nodes: the square roots of the diagonal of their inner products."""
    squares = tl.sum(tl.where(node[:, None] == node[None, :], products, 0.0), axis=1)
    return tl.maximum(tl.sqrt(tl.maximum(squares, 0.0)), 1e-8)


@triton.jit
def _cosine(products: tl.tensor, norm: tl.tensor, other_norm: tl.tensor) -> tl.tensor:
    cosine = products / (norm[:, None] * other_norm[None, :])
    return tl.where(cosine == cosine, cosine, -2.0)


@triton.jit
def _best_overlaps_kernel(
    place_ptr: tl.tensor,
    id_ptr: tl.tensor,
    cross_ptr: tl.tensor,
    slot_cell_ptr: tl.tensor,
    node_slot_ptr: tl.tensor,
    earlier_ptr: tl.tensor,
    similarity_ptr: tl.tensor,
    N: int,
    P: int,
    R: int,
    K: int,
    slots: int,
    CELLS: tl.constexpr,
) -> None:
    """One program for each block of places. It looks at all slots of a node's root, where all cells of the node lie."""
    here = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    t = here // P
    links = (here < N) & (t > 0)
    links = links & (tl.load(place_ptr + here, mask=links, other=-1) == here)
    root = tl.load(node_slot_ptr + here % P) // K
    best = tl.full((CELLS,), float("-inf"), tl.float32)
    destination = here
    for slot in range(slots):
        cell = t * P + tl.load(slot_cell_ptr + root * slots + slot)
        inside = links & (tl.load(place_ptr + cell, mask=links, other=-1) == here)
        earlier = tl.load(place_ptr + cell - P, mask=inside, other=0)
        row = tl.load(node_slot_ptr + tl.load(id_ptr + cell - P, mask=inside, other=0))
        column = tl.load(node_slot_ptr + tl.load(id_ptr + cell, mask=inside, other=0)) % K
        cosine = tl.load(cross_ptr + (t - 1) * R * K * K + row * K + column, mask=inside, other=float("-inf"))
        is_better = inside & ((cosine > best) | ((cosine == best) & (earlier < destination)))
        best = tl.where(is_better, cosine, best)
        destination = tl.where(is_better, earlier, destination)
    tl.store(earlier_ptr + here, destination, mask=here < N)
    tl.store(similarity_ptr + here, best, mask=here < N)


@triton.jit
def _weighted_sum(
    x_ptr: tl.tensor,
    cell_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    first: int,
    last: int,
    channel: tl.tensor,
    C: int,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Weighted sum of the cells at places first..last-1. The order is fixed, so that the result can be reproduced."""
    total = tl.zeros((CHANNELS,), tl.float32)
    for begin in range(first, last, CELLS):
        place = begin + tl.arange(0, CELLS)
        cell = tl.load(cell_ptr + place, mask=place < last, other=0)
        weight = tl.load(weight_ptr + cell, mask=place < last, other=0.0)
        inside = (place[:, None] < last) & (channel[None, :] < C)
        x = tl.load(x_ptr + cell[:, None] * C + channel[None, :], mask=inside, other=0.0)
        total += tl.sum(x.to(tl.float32) * weight[:, None], axis=0)
    return total


@triton.jit
def _window_sums_kernel(
    x_ptr: tl.tensor,
    row_ptr: tl.tensor,
    cell_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    C: int,
    WINDOW: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One program for each window and block of channels. It sums only windows that lie within one row."""
    window = tl.program_id(0)
    first = window * WINDOW
    row = tl.load(row_ptr + first)
    if (row >= 0) & (row == tl.load(row_ptr + first + WINDOW - 1)):
        channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        total = _weighted_sum(x_ptr, cell_ptr, weight_ptr, first, first + WINDOW, channel, C, CELLS, CHANNELS)
        tl.store(partial_ptr + window.to(tl.int64) * C + channel, total, mask=channel < C)


@triton.jit
def _row_sums_kernel(
    x_ptr: tl.tensor,
    cell_ptr: tl.tensor,
    start_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    out_ptr: tl.tensor,
    C: int,
    WINDOW: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One program for each row and block of channels.

    It adds up the cells before the row's first whole window, the sums of its windows, and the cells after the last one.
    """
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.load(start_ptr + row)
    last = tl.load(start_ptr + row + 1)
    first_window = tl.cdiv(first, WINDOW)
    last_window = tl.maximum(last // WINDOW, first_window)
    head = tl.minimum(first_window * WINDOW, last)
    tail = tl.maximum(last_window * WINDOW, head)
    tail = tl.where(last_window == first_window, head, tail)
    total = _weighted_sum(x_ptr, cell_ptr, weight_ptr, first, head, channel, C, CELLS, CHANNELS)
    for window in range(first_window, last_window):
        total += tl.load(partial_ptr + window * C + channel, mask=channel < C, other=0.0)
    total += _weighted_sum(x_ptr, cell_ptr, weight_ptr, tail, last, channel, C, CELLS, CHANNELS)
    tl.store(out_ptr + row * C + channel, total.to(out_ptr.dtype.element_ty), mask=channel < C)
