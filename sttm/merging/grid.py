"""The quadtree over one H x W grid as index tables, computed once and shared by all videos with that grid.

Nodes are numbered level by level from the cells up, and in raster order within a level, so that node p < P is cell p.
The cells of one root are laid out on S x S slots; where a side of the grid is odd, some slots are empty. The K nodes
of a root follow one another level by level.

Shapes: L levels; P = H*W cells of a frame; Q nodes on all levels; I = Q - P inner nodes; R roots; S*S slots of a root,
S = 2 ** (L - 1); K nodes of a root.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Index tables for one height, width and root level.

    Attributes:
        sizes: (h, w) of every level, the finest level first.
        node: int64 [L, P], the node that covers each cell on each level.
        inner: int64 [L-1, P], the inner node that covers each cell on each level above the cells, numbered from the
            first inner node on.
        first: int64 [Q], top-left cell of each node.
        box: int32 [Q, 4], half-open box (y0, x0, y1, x1) of each node, in cells.
        patches: int64 [Q], number of cells that each node covers.
        children: int64 [I, 4], the nodes below each inner node; in place of a missing child the first one is repeated.
        child_count: int64 [I], number of children of each inner node, 1 to 4.
        lineage: int64 [I, L-1], each inner node and the nodes above it, numbered from the first inner node on; the
            root is repeated where the lineage is shorter.
        weight: float32 [L, P], weight of each cell in the mean that is the value of its node on each level.
        slot_cell: int64 [R, S*S], the cell in each slot; an empty slot repeats a cell of its root.
        pool: float32 [R, K, S*S], the nodes of each root as linear maps of its slots, with 0 at empty slots.
        node_slot: int64 [Q], root * K + k for the k-th node of each root.
        child_cosine: int64 [I, 4], index of the cosine of each inner node with each child in the flattened [R, K, K]
            cosines of a frame.
    """

    sizes: tuple[tuple[int, int], ...]
    node: Tensor
    inner: Tensor
    first: Tensor
    box: Tensor
    patches: Tensor
    children: Tensor
    child_count: Tensor
    lineage: Tensor
    weight: Tensor
    slot_cell: Tensor
    pool: Tensor
    node_slot: Tensor
    child_cosine: Tensor

    @property
    def levels(self) -> int:
        return len(self.sizes)

    @property
    def cells(self) -> int:
        return self.node.shape[1]

    @property
    def roots(self) -> int:
        return self.pool.shape[0]


def level_sizes(H: int, W: int, root_level: int) -> tuple[tuple[int, int], ...]:
    """Height and width of each level of the quadtree, the finest level first (paper, section 3.2).

    Each level halves the level below it, rounded up, while both sides exceed 2. The coarsest `root_level` levels are
    left out. Example: a 14 x 14 grid has levels of side 14, 7 and 4 at root level 1.
    """
    sizes = [(H, W)]
    while min(sizes[-1]) > 2:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return tuple(sizes[: max(1, len(sizes) - root_level)])


@lru_cache(maxsize=64)
def make_grid(H: int, W: int, root_level: int, device: torch.device) -> Grid:
    """The index tables of one grid on `device`. They are computed on the first call and then cached."""
    sizes = level_sizes(H, W, root_level)
    owner_y, slot_y = _axis([h for h, _ in sizes])
    owner_x, slot_x = _axis([w for _, w in sizes])
    starts = torch.tensor([0] + [h * w for h, w in sizes]).cumsum(0).tolist()
    node = torch.stack(
        [
            start + (y[:, None] * w + x).flatten()
            for start, y, x, (_, w) in zip(starts, owner_y, owner_x, sizes, strict=False)
        ]
    )
    first, box, patches = _extents(node, starts[-1], W)
    parent, children, child_count = _family(node, first, starts)
    weight = _weights(node, child_count, H * W)
    slot_cell, pool, node_slot = _slots(node, first, weight, slot_y, slot_x, starts)
    K = pool.shape[1]
    child_cosine = node_slot[H * W :, None] * K + node_slot[children] % K
    lineage = _lineage(parent, H * W, len(sizes) - 1)
    slots = (slot_cell, pool, node_slot, child_cosine)
    tables = (node, node[1:] - H * W, first, box, patches, children, child_count, lineage, weight, *slots)
    return Grid(sizes, *(table.to(device) for table in tables))


def _axis(sides: list[int]) -> tuple[list[Tensor], Tensor]:
    """Assign the positions of one axis to the coarser levels and to slots.

    Where a side is odd, its first position has no partner and lies in the second of two slots.

    Args:
        sides: length of the axis on each level, the finest level first.

    Returns:
        Per level, the index that covers each finest position; and the slot of each finest position within its root.

    Example: sides [3, 2] -> indices [0, 1, 2] and [0, 1, 1]; slots [1, 0, 1]: slot 1 of root 0, slots 0, 1 of root 1.
    """
    owner = torch.arange(sides[0])
    owners, slot = [owner], torch.zeros_like(owner)
    for level, side in enumerate(sides[:-1]):
        shifted = owner + side % 2
        slot = slot + (shifted % 2 << level)
        owner = shifted // 2
        owners.append(owner)
    return owners, slot


def _extents(node_LP: Tensor, nodes: int, W: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the tables `first`, `box` and `patches` of `Grid`."""
    cell_LP = torch.arange(node_LP.shape[1]).expand_as(node_LP)
    first = torch.full((nodes,), node_LP.shape[1]).scatter_reduce(0, node_LP.flatten(), cell_LP.flatten(), "amin")
    last = torch.zeros(nodes, dtype=torch.long).scatter_reduce(0, node_LP.flatten(), cell_LP.flatten(), "amax")
    box = torch.stack([first // W, first % W, last // W + 1, last % W + 1], 1)
    return first, box.int(), torch.bincount(node_LP.flatten(), minlength=nodes)


def _family(node_LP: Tensor, first_Q: Tensor, starts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the parent of each node (int64 [Q]; a root is its own parent) and `children`, `child_count` of `Grid`."""
    parent = torch.arange(len(first_Q))
    for level in range(len(starts) - 2):
        ids = slice(starts[level], starts[level + 1])
        parent[ids] = node_LP[level + 1, first_Q[ids]]
    inner = len(first_Q) - starts[1]
    children = torch.full((inner, 4), -1)
    count = torch.zeros(inner, dtype=torch.long)
    for child, up in enumerate(parent.tolist()):
        if up != child:
            children[up - starts[1], count[up - starts[1]]] = child
            count[up - starts[1]] += 1
    return parent, torch.where(children < 0, children[:, :1], children), count


def _lineage(parent_Q: Tensor, cells: int, inner_levels: int) -> Tensor:
    """Compute the table `lineage` of `Grid`."""
    line = [torch.arange(cells, len(parent_Q))]
    for _ in range(inner_levels - 1):
        line.append(parent_Q[line[-1]])
    return torch.stack(line, 1) - cells


def _weights(node_LP: Tensor, child_count_I: Tensor, cells: int) -> Tensor:
    """Compute the table `weight` of `Grid`.

    A node is the mean of its children, so on each level the weight of a cell is divided by the number of children.
    """
    weights = [torch.ones(cells)]
    for level_nodes in node_LP[1:]:
        weights.append(weights[-1] / child_count_I[level_nodes - cells])
    return torch.stack(weights)


def _slots(
    node_LP: Tensor, first_Q: Tensor, weight_LP: Tensor, slot_y: Tensor, slot_x: Tensor, starts: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the tables `slot_cell`, `pool` and `node_slot` of `Grid`."""
    levels, cells = node_LP.shape
    root = node_LP[-1] - starts[levels - 1]
    roots, S = starts[levels] - starts[levels - 1], 1 << (levels - 1)
    slot = (slot_y[:, None] * S + slot_x).flatten()
    slot_cell = first_Q[starts[levels - 1] :, None].repeat(1, S * S)
    slot_cell[root, slot] = torch.arange(cells)
    K = sum((S >> level) ** 2 for level in range(levels))
    pool, node_slot, start = torch.zeros(roots, K, S * S), torch.zeros(starts[-1], dtype=torch.long), 0
    for level in range(levels):
        side = S >> level
        place = start + ((slot_y >> level)[:, None] * side + (slot_x >> level)).flatten()
        pool[root, place, slot] = weight_LP[level]
        node_slot[node_LP[level]] = root * K + place
        start += side * side
    return slot_cell, pool, node_slot
