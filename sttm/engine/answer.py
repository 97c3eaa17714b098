"""Answer any number of questions about one video from its KV cache.

    KVCache ──ready()──► ReadyVideo (keys rotated, on the device) ──► Continuation.feed(questions) ──► tokens

The video's keys and values are never copied: all rows attend to the one cache, and to tokens of their own, which are
all that memory grows with.

Shapes: B questions, Q longest question, D head size, V vocabulary. Questions are padded on the left, so all rows end
together and every step appends one token a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sttm.engine.decoder import causal_mask, rotary, rotate, run_layer
from sttm.kv_cache import KVCache
from sttm.models.language_model import LanguageModel
from sttm.settings import Settings


class SamplingConfig(Settings):
    """How the next token is chosen.

    Attributes:
        max_tokens: longest answer, in tokens.
        temperature: 0 takes the likeliest token (greedy).
        top_p: sample from the likeliest tokens that together hold this probability.
        seed: makes sampling repeatable; None draws a new seed.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class ReadyVideo:
    """A video's KV cache as attention wants it: keys rotated, everything on one device.

    Attributes:
        keys, values: per layer [heads, tokens, D].
        merge_layer: layers from here on hold the reduced tokens.
        next_positions: first free position for layers below `merge_layer` and from it on.
        position_axes: 1 for RoPE, 3 for M-RoPE.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    merge_layer: int
    next_positions: tuple[int, int]
    position_axes: int

    def group(self, layer: int) -> int:
        """0 for a layer that holds every token, 1 for one that holds the reduced ones."""
        return int(layer >= self.merge_layer)


@torch.inference_mode()
def ready(model: LanguageModel, cache: KVCache) -> ReadyVideo:
    """Bring a cache to the model's device and dtype and rotate its keys."""
    angles = [
        tuple(a[0] for a in rotary(model, model.text.embed_tokens.weight, p.to(model.device).long()[:, None]))
        for p in (cache.positions, cache.reduced_positions)
    ]
    keys = []
    for layer, key in enumerate(cache.keys):
        cos, sin = angles[layer >= cache.merge_layer]
        keys.append(rotate(key.to(model.device, model.dtype), (cos, sin)))
    values = tuple(v.to(model.device, model.dtype) for v in cache.values)
    next_positions = (cache.next_position, cache.reduced_next_position)
    return ReadyVideo(tuple(keys), values, cache.merge_layer, next_positions, len(cache.positions))


class Continuation:
    """Text that continues after one stored video, B rows at once; each row's own tokens go into buffers made once.

    Args:
        model: the language model that made the cache.
        video: the cache, ready on the model's device.
        questions: token ids of each row's question.
        room: tokens a row that will be fed after the questions.
    """

    def __init__(self, model: LanguageModel, video: ReadyVideo, questions: Sequence[Sequence[int]], room: int) -> None:
        self._model, self._video, self._questions = model, video, questions
        longest = max(map(len, questions))
        if min(map(len, questions)) == 0:
            raise ValueError("a question has no tokens")
        self._pad = torch.tensor([longest - len(q) for q in questions], device=model.device)
        self._padded = bool(self._pad.any())
        self._fed = 0
        self._own = _OwnTokens(video, len(questions), longest + room)

    @torch.inference_mode()
    def start(self) -> Tensor:
        """Feed the questions; float32 logits [B, V] of each row's first answer token."""
        rows = [[0] * int(p) + list(q) for p, q in zip(self._pad, self._questions, strict=True)]
        return self._feed(torch.tensor(rows, device=self._model.device))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token a row, int64 [B]; float32 logits [B, V] of the next."""
        return self._feed(tokens[:, None])

    def _feed(self, ids: Tensor) -> Tensor:
        model, video = self._model, self._video
        hidden = model.text.embed_tokens(ids)
        queries = ids.shape[1]
        place = (torch.arange(queries, device=ids.device) + self._fed - self._pad[:, None]).clamp_min(0)
        angles = [rotary(model, hidden, (place + n).expand(video.position_axes, -1, -1)) for n in video.next_positions]
        mask = self._mask(queries)
        for layer, shared in enumerate(zip(video.keys, video.values, strict=True)):
            hidden = run_layer(model, layer, hidden, mask, angles[video.group(layer)], self._own, shared)
        self._fed += queries
        return model.logits(hidden[:, -1])

    def _mask(self, queries: int) -> Tensor | None:
        """Who may see which own token, [B, 1, Q, P]; None where one unpadded token may see them all."""
        if self._fed == 0:
            return causal_mask(0, self._pad, queries)
        if not self._padded:
            return None
        return (torch.arange(self._fed + queries, device=self._pad.device) >= self._pad[:, None])[:, None, None]


class _OwnTokens:
    """Per layer, keys and values of the rows' own tokens: [B, heads, room, D], filled from the front."""

    def __init__(self, video: ReadyVideo, rows: int, room: int) -> None:
        self._filled = [0] * len(video.keys)
        self._keys = [key.new_empty(rows, key.shape[0], room, key.shape[2]) for key in video.keys]
        self._values = [torch.empty_like(key) for key in self._keys]

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        start, end = self._filled[layer], self._filled[layer] + keys.shape[2]
        self._keys[layer][:, :, start:end] = keys
        self._values[layer][:, :, start:end] = values
        self._filled[layer] = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]


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
    choose = _Chooser(sampling, model.device)
    running = [True] * len(questions)
    logits = continuation.start()
    for step in range(sampling.max_tokens):
        tokens = choose(logits)
        ids = tokens.tolist()
        running = [r and i not in stop_ids for r, i in zip(running, ids, strict=True)]
        if not any(running):
            return
        yield [i if r else None for r, i in zip(running, ids, strict=True)]
        if step + 1 < sampling.max_tokens:
            logits = continuation.step(tokens)


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


class _Chooser:
    """Picks the next token of each row from float32 logits [B, V]."""

    def __init__(self, sampling: SamplingConfig, device: torch.device) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        s = self._sampling
        if s.temperature == 0:
            return logits.argmax(-1)
        chances, ids = (logits / s.temperature).softmax(-1).sort(-1, descending=True)
        chances = chances.masked_fill(chances.cumsum(-1) - chances > s.top_p, 0.0)
        return ids.gather(1, torch.multinomial(chances, 1, generator=self._generator))[:, 0]
