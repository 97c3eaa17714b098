"""The merge's heavy steps on a GPU, in Triton: all cosines in one pass, the links, all weighted sums in another pass.

They compute what `similarity`, `temporal` and `merged` say in plain torch, which stays the definition, without its
copies: the slots of a root are gathered while they are multiplied, and every feature is read once more for the sums.

Shapes as in `grid`: T frames, P cells a frame, C channels, R roots, S*S slots and K nodes of a root; M rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sttm.gpu import on_its_gpu
from sttm.merging.grid import Grid

_MOST_SLOTS = 64  # of a root: three 64 x 64 blocks of products are what a program's registers hold
_WINDOW = 64  # cells


def fits(grid: Grid) -> bool:
    """Whether `cosines` can work on this grid: a root's products must fit into one program."""
    return grid.slot_cell.shape[1] <= _MOST_SLOTS


def empty_cosines(T: int, grid: Grid, *, temporal: bool) -> tuple[Tensor, Tensor]:
    """Room for what `cosines` finds."""
    R, K, _ = grid.pool.shape
    shape = (R, K, K)
    return grid.pool.new_empty(T, *shape), grid.pool.new_empty(max(0, T - 1) if temporal else 0, *shape)


@on_its_gpu
def cosines(x_TPC: Tensor, grid: Grid, own: Tensor, cross: Tensor) -> None:
    """Cosines of each root's nodes into `own`, float32 [T, R, K, K], and with those of the next frame into `cross`.

    `cross` is [T-1, R, K, K], or empty to leave it out. Cosines of features that are not numbers are -2.
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
    """For every place [N] itself, the place of its most similar overlap in the frame before, and their cosine."""
    T, P = place_TP.shape
    earlier, similarity = torch.empty_like(place_TP.view(-1)), torch.empty(T * P, device=place_TP.device)
    R, K, slots = grid.pool.shape
    _best_overlaps_kernel[(triton.cdiv(T * P, 128),)](
        place_TP, id_TP, cross, grid.slot_cell, grid.node_slot, earlier, similarity, T * P, P, R, K, slots, CELLS=128
    )
    return torch.arange(T * P, device=place_TP.device), earlier, similarity


@on_its_gpu
def row_sums(x_NC: Tensor, row_N: Tensor, weight_N: Tensor, rows: int) -> Tensor:
    """[rows, C], dtype of `x_NC`: sum of weight * x over the cells of each row, in float32; row -1 is left out.

    The cells are put in the order of their rows. A row that covers whole windows of that order, such as a background
    that never changes, is summed window by window first, so that no program has much more to do than another.
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
    """One program a frame and root. SLOTS and NODES are their numbers rounded up to what `tl.dot` takes."""
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
    """Inner products of nodes from those of slots."""
    half = tl.dot(pool, products, input_precision="ieee")
    return tl.dot(half, tl.trans(pool), input_precision="ieee")


@triton.jit
def _norms(products: tl.tensor, node: tl.tensor) -> tl.tensor:
    """Square roots of the diagonal."""
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
    """One program a block of places. A node's cells lie within its root, so the slots of that are looked through."""
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
    """Of the cells at places first..last-1, in their order, so that the sum is the same each time."""
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
    """One program a window and block of channels; only windows that lie within one row are summed."""
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
    """One program a row: the cells before its first whole window, its windows, the cells after the last."""
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
