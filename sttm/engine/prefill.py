"""Prefills one video: all tokens go through the first layers, then they are merged, and the survivors go on.

    tokens L ──► layers 0..k-1 ──► merge (STTM) ──► layers k.. on L' tokens ──► KV cache (ragged)

Of the last layer only keys and values are computed, because nothing reads its hidden states.

Shapes: L prefix tokens, N visual ones among them, M survivors, L' = L - N + M, A position axes, C hidden size.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sttm.engine.context import require_room_for_questions
from sttm.engine.decoder import causal_mask, key_bias, keys_and_values, moved, rotary, run_layer, unrotated_keys
from sttm.errors import ConfigError
from sttm.kv_cache import KVCache
from sttm.merging import MergeConfig, Merged, merge
from sttm.models.base import Prompt
from sttm.models.language_model import LanguageModel
from sttm.settings import Settings


class PrefillConfig(Settings):
    """How the language model reads a video.

    Attributes:
        merge_layer: decoder layer before which visual tokens are merged; 0 merges the embeddings (paper: 2 at 7B).
        position_rule: positions after the merge (paper, Table 8). `survived` keeps the position of a survivor's first
            cell. `reassigned` numbers the shortened sequence without gaps. `merged` averages the positions of the cells
            that a survivor stands for. `auto` is `reassigned` for RoPE and `survived` for M-RoPE.
        proportional_attention: whether a survivor counts in attention as often as the number of tokens it stands for,
            from `merge_layer` on. The logarithm of that number is added to the logits of its key (ToMe, arXiv
            2210.09461, section 3).
        chunk_tokens: most tokens that go through a layer at once, to bound activation memory. None takes all at once.
    """

    merge_layer: int = 2
    position_rule: Literal["auto", "survived", "reassigned", "merged"] = "auto"
    proportional_attention: bool = False
    chunk_tokens: int | None = None


def require_possible(text_config: Any, merging: MergeConfig, config: PrefillConfig) -> None:
    """Check settings against the decoder that they are for. This needs no weights.

    Args:
        text_config: the config of the text model.
        merging: settings of the merge.
        config: settings of the prefill.

    Raises:
        ConfigError: `merge_layer` lies outside the decoder, or `head_dim` does not divide its hidden states.
    """
    depth, channels = text_config.num_hidden_layers, text_config.hidden_size
    if not 0 <= config.merge_layer < depth:
        layers = f"this model has layers 0 to {depth - 1}; choose one"
        raise ConfigError(f"prefill.merge_layer={config.merge_layer}: {layers}")
    if channels % (merging.head_dim or channels):
        raise ConfigError(
            f"merge.head_dim={merging.head_dim} does not divide this model's {channels} channels; take a divisor, or "
            "null to compare whole vectors"
        )


@dataclass(frozen=True)
class Prefilled:
    """The result of prefilling one video.

    Attributes:
        cache: keys (before RoPE) and values of every layer, to be stored.
        merged: the survivors at `merge_layer`, and the survivor that each visual token went to.
    """

    cache: KVCache
    merged: Merged


@torch.inference_mode()
def prefill(model: LanguageModel, prompt: Prompt, merging: MergeConfig, config: PrefillConfig) -> Prefilled:
    """Read one video into a KV cache.

    Args:
        model: the language model.
        prompt: the prefix that ends with the video, embedded.
        merging: settings of the merge.
        config: settings of the prefill.

    Raises:
        ConfigError: the settings do not go with the decoder.
        VideoError: with code `too_long`, if the video leaves no positions for a question before or after the merge.
    """
    text_config, k = model.text.config, config.merge_layer
    require_possible(text_config, merging, config)
    if k:
        length = len(prompt.ids)
        require_room_for_questions(text_config, length, prompt.next_position, "lower video.max_frames")
    ones = torch.ones(len(prompt.ids), dtype=torch.int32, device=prompt.embeds.device)
    sequence = _Sequence(prompt.positions, prompt.visual, prompt.next_position, ones)
    state = _State(sequence, prompt.embeds, prompt.deepstack, rotary(model, prompt.positions[:, None]))
    merged, tables, stored = None, {}, []
    last = len(model.layer_devices) - 1
    for layer, device in enumerate(model.layer_devices):
        if layer == k:
            merged = _merge(state, prompt.grid, merging)
            state = _reduce(model, state, merged, config)
            length = len(state.hidden)
            cure = "lower video.max_frames, or merge.budget where positions are reassigned"
            require_room_for_questions(text_config, length, state.sequence.next_position, cure)
            tables = _tables(
                prompt, state.sequence, merged
            )  # fetched now, because at the end the fetch would wait for all layers
        state = state.on(device)
        if layer < last:
            hidden, *layer_cache = _prefill_layer(model, layer, state, config.chunk_tokens)
            state = state.after_layer(hidden)
        else:
            layer_cache = _prefill_last_layer(model, state, config.chunk_tokens)
        stored.append(layer_cache)
    assert merged is not None
    keys, values = zip(*stored, strict=True)
    return Prefilled(KVCache(keys, values, merge_layer=k, **tables), merged)


@dataclass(frozen=True)
class _Sequence:
    """Positions of the tokens [A, L], indices of the visual tokens [N], and multiplicity of every token [L]."""

    positions: Tensor
    visual: Tensor
    next_position: int
    multiplicity: Tensor


@dataclass(frozen=True)
class _State:
    """The state between two layers.

    Attributes:
        sequence: the tokens' positions, which stay the same up to the merge.
        hidden: [L, C], hidden states.
        deepstack: features [N, C] that are added to the visual tokens behind each of the next layers.
        angles: cosines and sines of the rotary embedding, [1, L, D] each.
        bias: float32 [L], added to the attention logits of the keys; None adds nothing.
    """

    sequence: _Sequence
    hidden: Tensor
    deepstack: tuple[Tensor, ...]
    angles: tuple[Tensor, Tensor]
    bias: Tensor | None = None

    def on(self, device: torch.device) -> "_State":
        """The state on the device of the next layer."""
        if self.hidden.device == device:
            return self
        sequence = _Sequence(**moved(vars(self.sequence), device))
        return _State(**moved({**vars(self), "sequence": sequence}, device))

    def after_layer(self, hidden: Tensor) -> "_State":
        """The state behind a layer with this output, to which the layer's deepstack level is added in place."""
        if self.deepstack:
            hidden.index_add_(0, self.sequence.visual, self.deepstack[0].to(hidden))
        return replace(self, hidden=hidden, deepstack=self.deepstack[1:])


def _merge(state: _State, grid: tuple[int, int, int], merging: MergeConfig) -> Merged:
    features = state.hidden[state.sequence.visual].view(*grid, -1)
    return merge(features, merging)


def _reduce(model: LanguageModel, state: _State, merged: Merged, config: PrefillConfig) -> _State:
    """The state with merged visual tokens. Their deepstack levels are merged with the same weights."""
    before = state.sequence
    first_cells = before.visual[merged.index]
    is_kept = torch.ones(len(state.hidden), dtype=torch.bool, device=state.hidden.device)
    is_kept[before.visual] = False
    is_kept[first_cells] = True
    kept = is_kept.nonzero().squeeze(1)
    visual = (torch.cumsum(is_kept, 0) - 1)[first_cells]
    positions, next_position = _positions(before, merged, kept, config.position_rule)
    multiplicity, bias = before.multiplicity[kept], None
    if config.proportional_attention:
        multiplicity[visual] = merged.patches.to(multiplicity)
        bias = key_bias(multiplicity)
    hidden = state.hidden[kept]
    hidden[visual] = merged.features.to(hidden)
    deepstack = tuple(merged.apply(level) for level in state.deepstack)
    sequence = _Sequence(positions, visual, next_position, multiplicity)
    return _State(sequence, hidden, deepstack, rotary(model, positions[:, None]), bias)


def _positions(before: _Sequence, merged: Merged, kept: Tensor, rule: str) -> tuple[Tensor, int]:
    """Positions [A, L'] of the tokens `kept`, and the first free position, by a `PrefillConfig.position_rule`."""
    positions = before.positions
    if rule == "auto":
        rule = "survived" if len(positions) == 3 else "reassigned"
    if rule == "reassigned":
        length = len(kept)
        return torch.arange(length, device=kept.device).expand(len(positions), -1), length
    if rule == "merged":
        mean = merged.apply(positions[:, before.visual].T.float()).round().long()
        positions = positions.index_copy(1, before.visual[merged.index], mean.T)
    return positions[:, kept], before.next_position


def _prefill_layer(
    model: LanguageModel, layer: int, state: _State, chunk_tokens: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer. Returns hidden states [L, C], keys before RoPE [heads, L, D] and values [heads, L, D]."""
    hidden, (cos, sin) = state.hidden[None], state.angles
    length = hidden.shape[1]
    step = min(chunk_tokens or length, length)
    cache = _OneLayer(length)
    out = []
    with unrotated_keys(model, layer) as unrotated:
        for start in range(0, length, step):
            stop = min(start + step, length)
            # The first chunk is square and needs no mask, so that SDPA takes its fast kernel. Later chunks need one.
            mask = causal_mask(start, hidden.new_zeros(1, dtype=torch.long), stop - start) if start else None
            part = (cos[:, start:stop], sin[:, start:stop])
            out.append(run_layer(model, layer, hidden[:, start:stop], mask, part, cache, bias=state.bias))
    values = cache.values[0]
    keys = _joined(unrotated)[0].view(length, values.shape[0], -1).transpose(0, 1).contiguous()
    return _joined(out)[0], keys, values.contiguous()


def _prefill_last_layer(model: LanguageModel, state: _State, chunk_tokens: int | None) -> list[Tensor]:
    """Compute the keys before RoPE and the values of the last layer, [heads, L, D] each."""
    layer, hidden = len(model.text.layers) - 1, state.hidden
    chunks = [keys_and_values(model, layer, part[None]) for part in hidden.split(chunk_tokens or len(hidden))]
    return [torch.cat(parts, dim=2)[0].contiguous() for parts in zip(*chunks, strict=True)]


def _joined(chunks: list[Tensor]) -> Tensor:
    """Chunks [1, tokens, ...] joined along the tokens. A single chunk is not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


class _OneLayer:
    """The cache of the layer that is being prefilled. It has room for the whole sequence and is filled by chunks."""

    def __init__(self, length: int) -> None:
        self._length, self._filled = length, 0
        self.keys = self.values = torch.empty(0)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        new = keys.shape[2]
        if new == self._length:
            self.keys, self.values = keys, values
            return keys, values
        if not self._filled:
            self.keys, self.values = (x.new_empty(*x.shape[:2], self._length, x.shape[3]) for x in (keys, values))
        end = self._filled + new
        self.keys[:, :, self._filled : end] = keys
        self.values[:, :, self._filled : end] = values
        self._filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def _tables(prompt: Prompt, reduced: _Sequence, merged: Merged) -> dict[str, Any]:
    """The fields of a `KVCache` other than its keys and values."""

    def table(x: Tensor) -> Tensor:
        return x.to("cpu", torch.int32)

    return {
        "prefix_ids": table(prompt.ids),
        "positions": table(prompt.positions),
        "reduced_positions": table(reduced.positions),
        "next_position": prompt.next_position,
        "reduced_next_position": reduced.next_position,
        "visual": table(reduced.visual),
        "boxes": table(merged.boxes),
        "patches": table(merged.patches),
        "multiplicity": table(reduced.multiplicity),
        "grid": prompt.grid,
        "frame_seconds": prompt.frame_seconds,
    }
