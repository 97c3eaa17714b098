"""The merge by plain loops over one node at a time, in float64: what the fast code must equal. Slow on purpose.

Written from the paper's text (arXiv 2507.07990, section 3), sharing nothing with `sttm.merging`. A node is
(level, y, x); a survivor lists the cells (t, y, x) it stands for and their weights.
"""

from dataclasses import dataclass, field

import numpy as np

Node = tuple[int, int, int]
Cell = tuple[int, int, int]


@dataclass
class Outcome:
    boxes: list[tuple[int, int, int, int, int]]
    features: np.ndarray
    patches: list[int]
    survivor: dict[Cell, int]
    margin: float  # smallest distance of a decisive cosine to its threshold or rival


@dataclass
class Video:
    """Pyramids of all frames and the margin of the decisions made on them."""

    x: np.ndarray
    root_level: int
    head_dim: int | None
    margin: float = np.inf
    levels: list[list[np.ndarray]] = field(default_factory=list)
    known_cells: dict[Node, frozenset[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for frame in self.x.astype(np.float64):
            pyramid = [frame]
            while min(pyramid[-1].shape[:2]) > 2:
                pyramid.append(coarser(pyramid[-1]))
            self.levels.append(pyramid[: max(1, len(pyramid) - self.root_level)])

    def value(self, t: int, node: Node) -> np.ndarray:
        return self.levels[t][node[0]][node[1], node[2]]

    def children(self, node: Node) -> list[Node]:
        level, y, x = node
        h, w = self.levels[0][level - 1].shape[:2]
        return [(level - 1, a, b) for a in below(y, h) for b in below(x, w)]

    def cells(self, node: Node) -> frozenset[tuple[int, int]]:
        if node[0] == 0:
            return frozenset([node[1:]])
        if node not in self.known_cells:
            self.known_cells[node] = frozenset().union(*(self.cells(child) for child in self.children(node)))
        return self.known_cells[node]

    def cosine(self, a: np.ndarray, b: np.ndarray) -> float:
        size = self.head_dim or len(a)
        parts = [slice(i, i + size) for i in range(0, len(a), size)]
        norm = np.linalg.norm
        return float(np.mean([a[p] @ b[p] / max(norm(a[p]), 1e-8) / max(norm(b[p]), 1e-8) for p in parts]))

    def reaches(self, cosine: float, threshold: float) -> bool:
        self.margin = min(self.margin, abs(cosine - threshold))
        return cosine >= threshold


def below(index: int, side: int) -> list[int]:
    """Positions of the finer level under one position of the coarser: an odd side keeps its first alone."""
    if side % 2 == 0:
        return [2 * index, 2 * index + 1]
    return [0] if index == 0 else [2 * index - 1, 2 * index]


def coarser(fine: np.ndarray) -> np.ndarray:
    h, w = fine.shape[:2]
    return np.array(
        [
            [np.mean([fine[a, b] for a in below(y, h) for b in below(x, w)], axis=0) for x in range((w + 1) // 2)]
            for y in range((h + 1) // 2)
        ]
    )


def frame_nodes(video: Video, t: int, threshold: float | None, reference: bool) -> list[Node]:
    """Spatial step: the nodes of one frame, sorted by top-left cell."""
    top = len(video.levels[t]) - 1
    h, w = video.levels[t][top].shape[:2]
    todo, nodes = [(top, y, x) for y in range(h) for x in range(w)], []
    while todo:
        node = todo.pop()
        if node[0] == 0:
            nodes.append(node)
            continue
        children = video.children(node)
        compared = list(children)
        if reference and len(children) < 4:
            compared.append((node[0] - 1, 0, 0))  # what the released code takes a missing child to be
        stays = threshold is not None and (reference or len(children) > 1)
        for child in compared:
            same = stays and len(children) == 1
            stays = stays and (
                same or video.reaches(video.cosine(video.value(t, node), video.value(t, child)), threshold)
            )
        if stays:
            nodes.append(node)
        else:
            todo.extend(children)
    return sorted(nodes, key=lambda node: min(video.cells(node)))


def frame_links(
    video: Video, t: int, before: list[Node], after: list[Node], threshold: float, best: bool
) -> list[tuple[Node, Node]]:
    """Temporal step between frames t and t+1: (node of t+1, node of t)."""
    links = []
    for late in after:
        found = []
        for early in before:
            a, b = video.cells(early), video.cells(late)
            if a <= b or b <= a:
                cosine = video.cosine(video.value(t, early), video.value(t + 1, late))
                if video.reaches(cosine, threshold):
                    found.append((cosine, early))
        if best and found:
            ordered = sorted(found, key=lambda entry: -entry[0])  # stable: of equal ones the top-left stays first
            if len(ordered) > 1 and ordered[0][0] != ordered[1][0]:
                video.margin = min(video.margin, ordered[0][0] - ordered[1][0])
            found = ordered[:1]
        links += [(late, early) for _, early in found]
    return links


def united(count: int, links: list[tuple[int, int]], stop_early: bool) -> list[int]:
    """Earliest member of each node's set: connected components, or what the released loop makes of them."""
    into = list(range(count))
    while True:
        lowest = [min(into[a], into[b]) for a, b in links]
        new = list(into)
        for (a, b), low in zip(links, lowest, strict=True):
            new[a], new[b] = min(new[a], low), min(new[b], low)
        into = [new[i] for i in new]
        flat = all(into[i] == into[into[i]] for i in range(count))
        if flat and (stop_early or all(into[a] == into[b] for a, b in links)):
            return into


def merge_slowly(
    x: np.ndarray,
    spatial: float | None,
    temporal: float | None,
    root_level: int = 1,
    variant: str = "exact",
    best: bool = True,
    weighted: bool = False,
    head_dim: int | None = None,
) -> Outcome:
    video = Video(x, root_level, head_dim)
    frames = [frame_nodes(video, t, spatial, variant == "reference") for t in range(len(x))]
    names = [(t, node) for t, nodes in enumerate(frames) for node in nodes]
    number = {name: i for i, name in enumerate(names)}
    links = []
    for t in range(len(x) - 1):
        if temporal is not None:
            pairs = frame_links(video, t, frames[t], frames[t + 1], temporal, best and variant == "exact")
            links += [(number[t + 1, late], number[t, early]) for late, early in pairs]
    into = united(len(names), links, variant == "reference")
    outcome = Outcome([], np.zeros((0,)), [], {}, video.margin)
    features = []
    for root in sorted(set(into)):
        members = [names[i] for i in range(len(names)) if into[i] == root]
        t, node = names[root]
        cells = sorted(video.cells(node))
        sizes = [len(video.cells(member)) for _, member in members]
        values = [video.value(at, member) for at, member in members]
        features.append(np.average(values, axis=0, weights=sizes if weighted else None))
        outcome.boxes.append((t, *cells[0], cells[-1][0] + 1, cells[-1][1] + 1))
        outcome.patches.append(sum(sizes))
        for at, member in members:
            outcome.survivor.update({(at, *cell): len(features) - 1 for cell in video.cells(member)})
    outcome.features = np.array(features)
    return outcome
