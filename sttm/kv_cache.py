"""The prefilled KV cache of one video: prefill makes it, the store keeps it, answering reads it.

Shapes: L tokens before the merge, L' after it, A position axes (1 for RoPE, 3 for M-RoPE), M survivors.
Layers below `merge_layer` hold all L tokens, layers from it on hold the L' reduced ones.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """Keys (before RoPE) and values of every decoder layer, and all else that is needed to ask a question after them.

    Attributes:
        keys: for each layer [kv_heads, L or L', head_dim], *before* RoPE (after k_norm if the model has one).
        values: for each layer, of the same shape and dtype as its keys.
        merge_layer: first layer that holds the reduced tokens; with 0 all layers have the same length.
        prefix_ids: int32 [L], token ids of the prompt up to and including the video.
        positions: int32 [A, L], position ids of the tokens in layers below `merge_layer`.
        reduced_positions: int32 [A, L'], position ids of the tokens in layers from `merge_layer` on.
        next_position: position of the first token after the prefix, in layers below `merge_layer`.
        reduced_next_position: position of the first token after the prefix, in layers from `merge_layer` on.
        visual: int32 [M], where the surviving visual tokens sit among the L' reduced tokens.
        boxes: int32 [M, 5] (t, y0, x0, y1, x1): the cells that each survivor's place covers, half-open, in grid units.
        patches: int32 [M], how many cells of the finest grid each survivor stands for.
        multiplicity: int32 [L'], for how many tokens each reduced token counts in attention; all 1 unless prefill ran
            with proportional attention.
        grid: (T, H, W) of the visual tokens before the merge.
        frame_seconds: float64 [T], presentation time of each grid frame.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    merge_layer: int
    prefix_ids: Tensor
    positions: Tensor
    reduced_positions: Tensor
    next_position: int
    reduced_next_position: int
    visual: Tensor
    boxes: Tensor
    patches: Tensor
    multiplicity: Tensor
    grid: tuple[int, int, int]
    frame_seconds: Tensor

    def __post_init__(self) -> None:
        tokens = (self.positions.shape[1], self.reduced_positions.shape[1])
        if len(self.keys) != len(self.values) or not 0 <= self.merge_layer <= len(self.keys):
            raise ValueError(
                f"{len(self.keys)} key and {len(self.values)} value layers, merge_layer {self.merge_layer}"
            )
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            expected = tokens[layer >= self.merge_layer]
            if key.shape != value.shape or key.shape[1] != expected:
                raise ValueError(
                    f"layer {layer}: keys {tuple(key.shape)}, values {tuple(value.shape)}, expected {expected} tokens"
                )
        if self.prefix_ids.shape != (tokens[0],) or self.visual.shape != self.patches.shape:
            raise ValueError(
                f"prefix_ids {tuple(self.prefix_ids.shape)} or visual {tuple(self.visual.shape)} do not fit"
            )
        if self.multiplicity.shape != (tokens[1],):
            raise ValueError(f"multiplicity {tuple(self.multiplicity.shape)} for {tokens[1]} reduced tokens")
        if self.boxes.shape != (len(self.patches), 5) or self.frame_seconds.shape != (self.grid[0],):
            raise ValueError(
                f"boxes {tuple(self.boxes.shape)} or frame_seconds {tuple(self.frame_seconds.shape)} do not fit"
            )

    @property
    def tokens(self) -> tuple[int, int]:
        """Number of tokens in a layer below `merge_layer`, and in a layer from it on."""
        return self.positions.shape[1], self.reduced_positions.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def to(self, device: torch.device | str) -> "KVCache":
        """The cache with its keys and values on `device`; the small tables stay where they are."""
        moved = {"keys": tuple(k.to(device) for k in self.keys), "values": tuple(v.to(device) for v in self.values)}
        return KVCache(**{**self.__dict__, **moved})


def group_layers(kinds: Sequence[Hashable], sizes_bytes: Sequence[int], at_once_bytes: int) -> list[range]:
    """Runs of neighbouring layers of one kind to compute as one batch: few launches on a GPU, and bounded memory.

    Args:
        kinds: kind of each layer, such as its shape.
        sizes_bytes: size of each layer.
        at_once_bytes: largest size of a run; a larger layer is a run of its own.
    """
    runs: list[range] = []
    for layer, kind in enumerate(kinds):
        first = runs[-1].start if runs else 0
        if runs and kinds[first] == kind and sum(sizes_bytes[first : layer + 1]) <= at_once_bytes:
            runs[-1] = range(first, layer + 1)
        else:
            runs.append(range(layer, layer + 1))
    return runs
