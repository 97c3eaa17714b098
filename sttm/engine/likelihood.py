"""Teacher-forced log-likelihoods of given answers after a stored video and a question.

A question is fed once. Then all its options are fed at once, each behind a copy of the question's keys and values.
"""

from collections.abc import Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sttm.engine.answer import Continuation
from sttm.engine.batching import batches
from sttm.engine.ready_video import ReadyVideo
from sttm.models.language_model import LanguageModel

_LOGITS_AT_ONCE = 1 << 26  # float32 numbers in memory at a time: 256 MB
T = TypeVar("T")
Steps = Generator[None, None, T]  # work in steps of bounded time; the generator returns the result


def run_steps(steps: Steps[T]) -> T:
    """Do all steps of some work. Returns its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def score_options(
    model: LanguageModel,
    video: ReadyVideo,
    questions: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    max_rows: int = 64,
) -> list[Tensor]:
    """log p(option | video, question) for every option of every question.

    Args:
        model: the language model that made the cache.
        video: the cache, ready on the model's devices.
        questions: token ids of each question, as `Family.question_ids` makes them.
        options: for each question, the token ids of each option. If they end with the stop token, an option is not
            preferred for being the beginning of a longer answer.
        max_rows: questions, or options, that are fed at once.

    Returns:
        For each question float32 [options] on the CPU: the sums of the log-probabilities of the options' tokens.
    """
    return run_steps(scoring(model, video, questions, options, max_rows))


@torch.inference_mode()
def scoring(
    model: LanguageModel,
    video: ReadyVideo,
    questions: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    max_rows: int = 64,
) -> Steps[list[Tensor]]:
    """The work of `score_options` in steps. Each step is short, however long questions and options are.

    Raises:
        ValueError: an option has no tokens.
    """
    if any(len(option) == 0 for row in options for option in row):
        raise ValueError("an option has no tokens")
    scores = [torch.empty(len(row)) for row in options]
    for numbers in batches([len(question) for question in questions], max_rows):
        asked = Continuation(model, video, [questions[number] for number in numbers], 0)
        last = torch.empty(0)
        for hidden in asked.read(asked.asked):
            last = hidden[:, -1]
            yield
        first = model.logits(last).log_softmax(-1)
        pairs = [(at, o) for at, number in enumerate(numbers) for o in range(len(options[number]))]
        tokens = [options[numbers[at]][o] for at, o in pairs]
        for group in batches([asked.fed + len(option) for option in tokens], max_rows):
            rows = [pairs[pair][0] for pair in group]
            found = yield from _scored(model, asked, first[rows], rows, [tokens[pair] for pair in group])
            for pair, score in zip(group, found.tolist(), strict=True):
                at, o = pairs[pair]
                scores[numbers[at]][o] = score
    return scores


def _scored(
    model: LanguageModel, asked: Continuation, first: Tensor, rows: Sequence[int], options: Sequence[Sequence[int]]
) -> Steps[Tensor]:
    """Log-probabilities, float32 [R], of R options.

    Options are padded on the right, where none of their tokens sees the padding.

    Args:
        model: the language model.
        asked: the questions, which were fed already.
        first: float32 [R, V], log-probabilities of the first token of each option.
        rows: for each option, the row of `asked` that it follows.
        options: token ids of each option.
    """
    longest = max(map(len, options))
    ids = torch.tensor([[*option, *[0] * (longest - len(option))] for option in options], device=model.device)
    is_real = torch.arange(longest) < torch.tensor([len(option) for option in options])[:, None]
    is_real = is_real.to(model.device)
    total, at = first.gather(1, ids[:, :1])[:, 0], 1
    if longest > 1:
        for hidden in asked.branch(rows, longest - 1).read(ids[:, :-1]):
            here = slice(at, at + hidden.shape[1])
            total, at = total + _log_likelihoods(model, hidden, ids[:, here], is_real[:, here]), here.stop
            yield
    return total.cpu()


def _log_likelihoods(model: LanguageModel, hidden: Tensor, ids: Tensor, is_real: Tensor) -> Tensor:
    """Sums, float32 [R], of the log-probabilities of tokens [R, q], given hidden states [R, q, C], without padding."""
    step = max(1, _LOGITS_AT_ONCE // model.text.config.vocab_size)
    states, wanted = hidden[is_real.to(hidden.device)].split(step), ids[is_real].split(step)
    chosen = torch.zeros(ids.shape, device=ids.device)
    chosen[is_real] = torch.cat(
        [model.logits(s).log_softmax(-1).gather(1, t[:, None])[:, 0] for s, t in zip(states, wanted, strict=True)]
    )
    return chosen.sum(1)
