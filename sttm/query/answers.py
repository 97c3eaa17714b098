"""Answers to questions about one video: texts that are being generated, and an option that was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sttm.engine.answer import Continuation, Generation
from sttm.engine.ready_video import ReadyVideo
from sttm.models.language_model import LanguageModel
from sttm.query.question import Query
from sttm.query.text_stream import TextStream


@dataclass(frozen=True)
class Choice:
    """The option that the model finds likeliest, found without generating text.

    Attributes:
        index: number of the likeliest option, from 0 on.
        probabilities: p(option and end of turn | video, question) of each option, normalised over the options.
        prompt_tokens: tokens of the question and the turns before it.
    """

    index: int
    probabilities: tuple[float, ...]
    prompt_tokens: int


class Answers:
    """A batch of answers that are being generated. All of them are about one video.

    The constructor feeds the questions to the model.

    Args:
        model: the language model that made the video's cache.
        video: the cache, ready on the model's devices.
        questions: token ids of each query's turns.
        queries: one query a row.
        tokenizer: the tokenizer of the model.
        stop_ids: tokens that end an answer.

    Attributes:
        prompt_tokens: tokens of each row's question and the turns before it.
        completion_tokens: tokens of each row's answer so far.
    """

    def __init__(
        self,
        model: LanguageModel,
        video: ReadyVideo,
        questions: Sequence[Sequence[int]],
        queries: Sequence[Query],
        tokenizer: Any,
        stop_ids: frozenset[int],
    ) -> None:
        self.prompt_tokens = [len(ids) for ids in questions]
        self.completion_tokens = [0] * len(queries)
        self._streams = [TextStream(tokenizer, query.sampling.stop) for query in queries]
        continuation = Continuation(model, video, questions, max(query.sampling.max_tokens for query in queries))
        sampling = [query.sampling for query in queries]
        self._generation = Generation(continuation, continuation.start(), stop_ids, sampling)

    @property
    def is_running(self) -> bool:
        """Whether any row has not ended."""
        return self._generation.is_running

    @property
    def texts(self) -> list[str]:
        """The text of each row so far."""
        return [stream.text for stream in self._streams]

    def ended(self, row: int) -> str | None:
        """None while the row runs, then why it ended: `stop` (a stop token or stop text), `length` or `cut`."""
        return "stop" if self._streams[row].is_stopped else self._generation.ended[row]

    def cut(self, row: int) -> None:
        """End a row now: nobody waits for its answer any more."""
        self._generation.end(row)

    def step(self) -> list[str]:
        """Generate one token a row. Returns the new text of each row, which is often empty."""
        ran = [ended is None for ended in self._generation.ended]
        pieces = [""] * len(self._streams)
        for row, token in enumerate(self._generation.step()):
            stream = self._streams[row]
            if token is not None:
                self.completion_tokens[row] += 1
                pieces[row] = stream.push(token)
            if stream.is_stopped:
                self._generation.end(row)
            if ran[row] and self._generation.ended[row] is not None:
                pieces[row] += stream.end()
        return pieces
