"""Answer any number of questions about one video from its KV cache.

    KVCache ──ready()──► ReadyVideo (keys rotated, on the device) ──► Continuation.feed(questions) ──► tokens

The video's keys and values are never copied: all rows attend to the one cache, and to tokens of their own, which are
all that memory grows with. Each row has its own sampling and its own end.

Shapes: B questions, Q longest question, D head size, V vocabulary. Questions are padded on the left, so all rows end
together and every step appends one token a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sttm.engine.decoder import key_bias, moved, rotary, rotate, run_layer
from sttm.engine.own_tokens import OwnTokens
from sttm.engine.sampling import Sampler, SamplingConfig
from sttm.engine.step_graph import StepGraph, captured
from sttm.kv_cache import KVCache, alike
from sttm.models.attention import additive
from sttm.models.language_model import LanguageModel
from sttm.models.placement import Devices, as_devices

_LOOKING_ROPE = ("dynamic", "longrope")
_ROTATED_AT_ONCE_BYTES = 32 << 20  # keys of several layers: few launches, and bounded memory
_EAGER_STEPS = 2  # run kernel by kernel first: many answers are a word, and the first step sets libraries up
_REPAID_AFTER = 8  # steps: making a graph takes about as long as two run kernel by kernel


@dataclass(frozen=True)
class ReadyVideo:
    """A video's KV cache as attention wants it: keys rotated, each layer's on the device of the model's layer.

    Attributes:
        keys, values: per layer [heads, tokens, D].
        merge_layer: layers from here on hold the reduced tokens.
        next_positions: first free position for layers below `merge_layer` and from it on.
        position_axes: 1 for RoPE, 3 for M-RoPE.
        bias: float32 [tokens], added to the attention logits of the reduced tokens' keys; None for plain attention.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    merge_layer: int
    next_positions: tuple[int, int]
    position_axes: int
    bias: Tensor | None = None

    def group(self, layer: int) -> int:
        """0 for a layer that holds every token, 1 for one that holds the reduced ones."""
        return int(layer >= self.merge_layer)

    @property
    def size_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def to(self, devices: Devices, pinned: bool = False) -> "ReadyVideo":
        """The same on another device; `pinned` puts it into page-locked memory, which a GPU copies at full rate.

        Args:
            devices: one for all, or one a layer, see `LanguageModel.layer_devices`.
            pinned: for the CPU only.
        """

        def placed(tensor: Tensor, device: torch.device) -> Tensor:
            tensor = tensor.to(device, non_blocking=tensor.is_pinned())
            return tensor.pin_memory() if pinned else tensor

        each = as_devices(devices)
        each = each * len(self.keys) if len(each) == 1 else each
        bias = None if self.bias is None else placed(self.bias, each[-1])
        return replace(
            self, keys=tuple(map(placed, self.keys, each)), values=tuple(map(placed, self.values, each)), bias=bias
        )


@torch.inference_mode()
def ready(model: LanguageModel, cache: KVCache) -> ReadyVideo:
    """Bring a cache to the model's devices and dtype and rotate its keys."""
    devices = model.layer_devices
    angles = [
        tuple(a[0] for a in rotary(model, model.text.embed_tokens.weight, p.to(model.device).long()[:, None]))
        for p in (cache.positions, cache.reduced_positions)
    ]
    keys: list[Tensor] = []
    kinds = [(key.shape, devices[layer], layer >= cache.merge_layer) for layer, key in enumerate(cache.keys)]
    for layers in alike(kinds, [key.nbytes for key in cache.keys], _ROTATED_AT_ONCE_BYTES):
        device = devices[layers.start]
        angles = moved(angles, device)
        together = torch.stack([cache.keys[layer].to(device, model.dtype) for layer in layers])
        keys += rotate(together, angles[layers.start >= cache.merge_layer]).unbind()
    values = tuple(v.to(device, model.dtype) for v, device in zip(cache.values, devices, strict=True))
    next_positions = (cache.next_position, cache.reduced_next_position)
    bias = moved(key_bias(cache.multiplicity), devices[-1])
    return ReadyVideo(tuple(keys), values, cache.merge_layer, next_positions, len(cache.positions), bias)


class Continuation:
    """Text that continues after one stored video, B rows at once; each row's own tokens go into buffers made once.

    Args:
        model: the language model that made the cache.
        video: the cache, ready on the model's devices.
        questions: token ids of each row's question.
        room: tokens a row that will be fed after the questions; more are copied into larger buffers.

    Attributes:
        fed: tokens a row so far, padding included.
    """

    def __init__(self, model: LanguageModel, video: ReadyVideo, questions: Sequence[Sequence[int]], room: int) -> None:
        self._model, self._video, self._questions = model, video, questions
        longest = max(map(len, questions))
        if min(map(len, questions)) == 0:
            raise ValueError("a question has no tokens")
        self._pad = torch.tensor([longest - len(q) for q in questions], device=model.device)
        self.fed = 0
        self._own = OwnTokens(video.keys, len(questions))
        self.expect(longest + room)
        self._steps = 0
        self._graph: StepGraph | None = None
        self._graph_seen = 0
        # One device; and a rotary embedding that does not look at the positions to choose its frequencies.
        is_fixed = (getattr(model.text.config, "rope_parameters", None) or {}).get("rope_type") not in _LOOKING_ROPE
        self._can_capture = is_fixed and {model.device, *model.layer_devices} == {video.keys[0].device}

    def expect(self, tokens: int) -> None:
        """So many more tokens a row will be fed."""
        self._end = self.fed + tokens
        self._own.make_room(self._end)

    def start(self) -> Tensor:
        """Feed the questions; float32 logits [B, V] of each row's first answer token."""
        rows = [[0] * int(p) + list(q) for p, q in zip(self._pad.tolist(), self._questions, strict=True)]
        return self.feed(torch.tensor(rows, device=self._model.device))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token a row, int64 [B]; float32 logits [B, V] of the next, which are good until the next step."""
        self._own.make_room(self.fed + 1)
        graph = self._step_graph()
        if graph is None:
            self._steps += 1
            return self.feed(tokens[:, None])
        self.fed += 1
        return graph.replay(tokens[:, None], self.fed - 1)

    @torch.inference_mode()
    def feed(self, ids: Tensor) -> Tensor:
        """Feed Q tokens a row, int64 [B, Q]; float32 logits [B, V] of the next."""
        first, self.fed = self.fed, self.fed + ids.shape[1]
        self._own.make_room(self.fed)
        columns = torch.arange(first, self.fed, device=ids.device)
        return self._logits(ids, columns, self._own.seen(self.fed))

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        chosen = torch.tensor(rows, device=self._pad.device)
        self._pad, self._graph = self._pad[chosen], None
        self._own.keep(chosen)

    def _logits(self, ids: Tensor, columns: Tensor, seen: int) -> Tensor:
        """Logits after tokens [B, Q] that go to these columns, int64 [Q], of the own ones, of which `seen` are seen.

        Of the tensors' values no shape follows, so that one call can stand for another in a CUDA graph.
        """
        model, video = self._model, self._video
        hidden = model.text.embed_tokens(ids)
        place = (columns - self._pad[:, None]).clamp_min(0)
        angles = [rotary(model, hidden, (place + n).expand(video.position_axes, -1, -1)) for n in video.next_positions]
        mask, bias = additive(self._mask(columns, seen), hidden.dtype), moved(video.bias, hidden.device)
        self._own.columns = columns
        self._own.shown = seen
        for layer, shared in enumerate(zip(video.keys, video.values, strict=True)):
            if hidden.device != shared[0].device:
                hidden, angles, mask, bias = moved((hidden, angles, mask, bias), shared[0].device)
            group = video.group(layer)
            hidden = run_layer(model, layer, hidden, mask, angles[group], self._own, shared, bias if group else None)
        return model.logits(hidden[:, -1])

    def _mask(self, columns: Tensor, seen: int) -> Tensor:
        """Which own tokens each query may see, [B, 1, Q, seen]: neither later ones nor padding."""
        column = torch.arange(seen, device=self._pad.device)
        return ((column <= columns[:, None])[None] & (column >= self._pad[:, None, None]))[:, None]

    def _step_graph(self) -> StepGraph | None:
        """The next step as a graph, made where enough tokens will follow to repay it."""
        seen = self._own.seen(self.fed + 1)
        if self._graph is not None and self._graph_seen == seen:
            return self._graph
        self._graph = None
        if self._can_capture and self._steps >= _EAGER_STEPS and min(seen, self._end) - self.fed >= _REPAID_AFTER:
            rows, device = len(self._pad), self._pad.device
            self._graph, self._graph_seen = captured(lambda i, c: self._logits(i, c, seen), rows, device), seen
            self._can_capture = self._graph is not None
        return self._graph


class Generation:
    """Answers to a batch of questions, one token a row a step.

    Args:
        continuation: the questions, fed.
        logits: float32 [B, V], of each row's first answer token.
        stop_ids: tokens that end an answer; they are not part of it.
        sampling: of each row.

    Attributes:
        ended: per row None while it runs, then why it ended: a stop token, its length, or because `end` was called.
    """

    def __init__(
        self,
        continuation: Continuation,
        logits: Tensor,
        stop_ids: frozenset[int],
        sampling: Sequence[SamplingConfig],
    ) -> None:
        self.ended: list[Literal["stop", "length", "cut"] | None] = [None] * len(sampling)
        self._continuation, self._stop_ids, self._sampling = continuation, stop_ids, sampling
        self._choose, self._steps = Sampler(sampling), 0
        self._logits: Tensor | None = logits
        self._last = torch.empty(0)
        self._rows = list(range(len(sampling)))  # those the continuation still holds

    @property
    def is_running(self) -> bool:
        return None in self.ended

    def end(self, row: int) -> None:
        """Ask no more of a row."""
        self.ended[row] = self.ended[row] or "cut"

    def step(self) -> list[int | None]:
        """The next token of every row, None for rows that have ended."""
        logits, self._logits = self._logits, None
        if logits is None:
            self._drop_ended()
            logits = self._continuation.step(self._last)
        self._last = self._choose(logits, self._rows)
        self._steps += 1
        tokens: list[int | None] = [None] * len(self.ended)
        for row, token in zip(self._rows, self._last.tolist(), strict=True):
            if self.ended[row] is None and token in self._stop_ids:
                self.ended[row] = "stop"
            if self.ended[row] is None:
                tokens[row] = token
                if self._steps >= self._sampling[row].max_tokens:
                    self.ended[row] = "length"
        return tokens

    def _drop_ended(self) -> None:
        """Stop computing rows that have ended, whenever they are half of the batch."""
        running = [at for at, row in enumerate(self._rows) if self.ended[row] is None]
        if 2 * len(running) <= len(self._rows):
            self._continuation.keep(running)
            self._last = self._last[running]
            self._rows = [self._rows[at] for at in running]


def generate(
    model: LanguageModel,
    video: ReadyVideo,
    questions: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    sampling: SamplingConfig,
) -> Iterator[list[int | None]]:
    """Answer questions token by token: yields one token id a row a step, None for rows that have ended.

    A stop token ends its row and is not yielded. The first yield marks the time to first token.
    """
    continuation = Continuation(model, video, questions, sampling.max_tokens)
    generation = Generation(continuation, continuation.start(), stop_ids, [sampling] * len(questions))
    while generation.is_running:
        tokens = generation.step()
        if any(token is not None for token in tokens):
            yield tokens


def answer(
    model: LanguageModel,
    video: ReadyVideo,
    questions: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    sampling: SamplingConfig | None = None,
) -> list[list[int]]:
    """Answer questions (token ids, as `Family.question_ids` makes them): token ids of each answer."""
    rows: list[list[int]] = [[] for _ in questions]
    for step in generate(model, video, questions, stop_ids, sampling or SamplingConfig()):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows
