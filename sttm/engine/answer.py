"""Answers any number of questions about one video from its KV cache.

    KVCache ──ready()──► ReadyVideo (keys rotated, on the device) ──► Continuation.feed(questions) ──► tokens

The video's keys and values are never copied. All rows attend to the one cache and each to its own question and answer,
so memory grows only with questions and answers. Each row has its own sampling settings and its own end.

Shapes: B questions, Q tokens of the longest question, C hidden size, V vocabulary. Questions are padded on the left, so
their last tokens stand in one column, and every step appends one token to each row.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Literal

import torch
from torch import Tensor

from sttm.engine.decoder import moved, rotary, run_layer
from sttm.engine.question_cache import QuestionCache
from sttm.engine.ready_video import ReadyVideo
from sttm.engine.sampling import Sampler, SamplingConfig
from sttm.engine.step_graph import StepGraph, captured
from sttm.models.attention import additive
from sttm.models.language_model import LanguageModel

_POSITION_DEPENDENT_ROPE = ("dynamic", "longrope")  # they choose their frequencies by the positions
# Bounds on what is fed at once. Without them the memory for a long question, and the time for which other batches wait,
# would grow with the square of its length.
_TOKENS_AT_ONCE = 2048  # over all rows
_SCORES_AT_ONCE = 1 << 22  # attention scores of one head between question tokens, over all rows
_EAGER_STEPS = 2  # steps without a graph: many answers are one word, and libraries set themselves up in the first step
_REPAID_AFTER = 8  # steps; capturing a graph takes about as long as two steps without one


class Continuation:
    """Feeds B rows of tokens after one stored video and returns logits.

    Args:
        model: the language model that made the cache.
        video: the cache, ready on the model's devices.
        questions: token ids of each row's question.
        room: tokens a row that will be fed after the questions. More can be fed; the buffers are then copied into
            larger ones.

    Attributes:
        asked: int64 [B, Q], the questions, padded on the left with 0.
        fed: tokens that each row was fed so far, padding included.

    Raises:
        ValueError: a question has no tokens.
    """

    def __init__(self, model: LanguageModel, video: ReadyVideo, questions: Sequence[Sequence[int]], room: int) -> None:
        self._model, self._video = model, video
        longest = max(map(len, questions))
        if min(map(len, questions)) == 0:
            raise ValueError("a question has no tokens")
        pads = [longest - len(question) for question in questions]
        rows = [[0] * pad + list(question) for pad, question in zip(pads, questions, strict=True)]
        self._pad, self.asked = torch.tensor(pads, device=model.device), torch.tensor(rows, device=model.device)
        self.fed = 0
        self._cache = QuestionCache(video.keys, len(questions))
        self.expect(longest + room)
        self._steps = 0
        self._graph: StepGraph | None = None
        self._graph_seen = 0
        # A graph holds work of one device, and replays it with the captured frequencies.
        is_fixed = (getattr(model.text.config, "rope_parameters", None) or {}).get(
            "rope_type"
        ) not in _POSITION_DEPENDENT_ROPE
        self._can_capture = is_fixed and {model.device, *model.layer_devices} == {video.keys[0].device}

    def expect(self, tokens: int) -> None:
        """Make room for this many further tokens a row."""
        self._end = self.fed + tokens
        self._cache.make_room(self._end)

    def start(self) -> Tensor:
        """Feed the questions. Returns float32 logits [B, V] of the first token of each answer."""
        return self.feed(self.asked)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token a row, int64 [B]. Returns float32 logits [B, V], which the next step may overwrite."""
        self._cache.make_room(self.fed + 1)
        graph = self._step_graph()
        if graph is None:
            self._steps += 1
            return self.feed(tokens[:, None])
        self.fed += 1
        return graph.replay(tokens[:, None], self.fed - 1)

    @torch.inference_mode()
    def feed(self, ids: Tensor) -> Tensor:
        """Feed Q tokens a row, int64 [B, Q]. Returns float32 logits [B, V] of the token after them."""
        last = torch.empty(0)
        for hidden in self.read(ids):
            last = hidden[:, -1]
        return self._model.logits(last)

    @torch.inference_mode()
    def read(self, ids: Tensor) -> Iterator[Tensor]:
        """Feed Q tokens a row, int64 [B, Q], in pieces of bounded memory and time.

        Yields the hidden states [B, q, C] of each piece after the last layer.
        """
        end = self.fed + ids.shape[1]
        self._cache.make_room(end)
        most = min(_TOKENS_AT_ONCE, _SCORES_AT_ONCE // self._cache.seen(end))
        for piece in ids.split(max(1, most // len(ids)), dim=1):
            first, self.fed = self.fed, self.fed + piece.shape[1]
            columns = torch.arange(first, self.fed, device=ids.device)
            yield self._hidden(piece, columns, self._cache.seen(self.fed))

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order. A row that is named twice becomes two rows."""
        chosen = torch.tensor(rows, device=self._pad.device)
        self._pad, self._graph = self._pad[chosen], None
        self._cache.keep(chosen)

    def branch(self, rows: Sequence[int], room: int) -> "Continuation":
        """A second continuation with these rows and room for `room` further tokens. This one stays as it is."""
        other = copy(self)
        other._cache = self._cache.copy()
        other.keep(rows)
        other.expect(room)
        return other

    def _logits(self, ids: Tensor, columns: Tensor, seen: int) -> Tensor:
        """Float32 logits [B, V] after the last of the tokens; takes the arguments of `_hidden`."""
        return self._model.logits(self._hidden(ids, columns, seen)[:, -1])

    def _hidden(self, ids: Tensor, columns: Tensor, seen: int) -> Tensor:
        """Hidden states [B, Q, C] of the tokens after the last layer.

        No shape may depend on the values of tensors: this call is captured as a CUDA graph and replayed.

        Args:
            ids: int64 [B, Q], the tokens.
            columns: int64 [Q], the columns of the question cache that the tokens go to.
            seen: number of columns of the question cache that the layers attend to.
        """
        model, video = self._model, self._video
        hidden = model.text.embed_tokens(ids)
        place = (columns - self._pad[:, None]).clamp_min(0)
        angles = [rotary(model, (place + n).expand(video.position_axes, -1, -1)) for n in video.next_positions]
        mask, bias = additive(self._mask(columns, seen), hidden.dtype), moved(video.bias, hidden.device)
        self._cache.columns = columns
        self._cache.shown = seen
        for layer, shared in enumerate(zip(video.keys, video.values, strict=True)):
            if hidden.device != shared[0].device:
                hidden, angles, mask, bias = moved((hidden, angles, mask, bias), shared[0].device)
            group = video.group(layer)
            hidden = run_layer(model, layer, hidden, mask, angles[group], self._cache, shared, bias if group else None)
        return hidden

    def _mask(self, columns: Tensor, seen: int) -> Tensor:
        """Bool [B, 1, Q, seen]: the columns that each token may see, which are neither later ones nor padding."""
        column = torch.arange(seen, device=self._pad.device)
        return ((column <= columns[:, None])[None] & (column >= self._pad[:, None, None]))[:, None]

    def _step_graph(self) -> StepGraph | None:
        """The graph of the next step. It is captured where enough steps will follow to repay it; else None."""
        seen = self._cache.seen(self.fed + 1)
        if self._graph is not None and self._graph_seen == seen:
            return self._graph
        self._graph = None
        if self._can_capture and self._steps >= _EAGER_STEPS and min(seen, self._end) - self.fed >= _REPAID_AFTER:
            rows, device = len(self._pad), self._pad.device
            self._graph, self._graph_seen = captured(lambda i, c: self._logits(i, c, seen), rows, device), seen
            self._can_capture = self._graph is not None
        return self._graph


class Generation:
    """Generates the answers to a batch of questions, one token a row in each step.

    Args:
        continuation: the questions, which were fed already.
        logits: float32 [B, V], the logits of the first token of each answer.
        stop_ids: tokens that end an answer. They are not part of it.
        sampling: the sampling settings of each row.

    Attributes:
        ended: for each row None while it runs, then why it ended: `stop` (a stop token), `length`, or `cut` (`end` was
            called).
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
        self._rows = list(range(len(sampling)))  # rows that the continuation still holds

    @property
    def is_running(self) -> bool:
        """Whether any row has not ended."""
        return None in self.ended

    def end(self, row: int) -> None:
        """End a row now, if it has not ended."""
        self.ended[row] = self.ended[row] or "cut"

    def step(self) -> list[int | None]:
        """Generate one token a row. Returns the tokens, None for rows that have ended."""
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
        """Stop computing the rows that have ended, once they are at least half of the batch."""
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
    """Answer questions token by token. Each yield holds one token id for each row, None for rows that have ended.

    A stop token ends its row and is not yielded.

    Args:
        model: the language model that made the cache.
        video: the cache, ready on the model's devices.
        questions: token ids of each question, as `Family.question_ids` makes them.
        stop_ids: tokens that end an answer.
        sampling: the sampling settings of all rows.
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
    """Answer questions. Returns the token ids of each answer.

    Args:
        model: the language model that made the cache.
        video: the cache, ready on the model's devices.
        questions: token ids of each question, as `Family.question_ids` makes them.
        stop_ids: tokens that end an answer. They are not part of it.
        sampling: the sampling settings of all rows. None takes the likeliest token each time, 64 tokens at most.
    """
    rows: list[list[int]] = [[] for _ in questions]
    for step in generate(model, video, questions, stop_ids, sampling or SamplingConfig()):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows
