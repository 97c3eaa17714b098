"""How likely a model finds given answers: teacher-forced log-likelihoods after a stored video and a question."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sttm.engine.answer import Continuation, ReadyVideo
from sttm.models.language_model import LanguageModel


@torch.inference_mode()
def score_options(
    model: LanguageModel,
    video: ReadyVideo,
    questions: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    max_rows: int = 64,
) -> list[Tensor]:
    """log p(option | video, question) for every option of every question.

    Args:
        questions: token ids, as `Family.question_ids` makes them.
        options: per question, the token ids of each option. End them with the stop token to ask for the whole answer,
            so that an option is not preferred for being the beginning of a longer one.
        max_rows: options scored at once.

    Returns:
        Per question, float32 [options] on the CPU: sums of the tokens' log-probabilities.
    """
    pairs = [(question, option) for question, row in zip(questions, options, strict=True) for option in row]
    if any(len(option) == 0 for _, option in pairs):
        raise ValueError("an option has no tokens")
    parts = [_score(model, video, pairs[at : at + max_rows]) for at in range(0, len(pairs), max_rows)]
    scores = torch.cat(parts) if parts else torch.empty(0)
    return list(scores.split([len(row) for row in options]))


def _score(model: LanguageModel, video: ReadyVideo, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """float32 [rows], one option a row; rows whose option has ended are fed its last token and not counted."""
    longest = max(len(option) for _, option in pairs)
    lengths = torch.tensor([len(option) for _, option in pairs], device=model.device)
    ids = torch.tensor([[*option, *[option[-1]] * (longest - len(option))] for _, option in pairs])
    ids = ids.to(model.device)
    continuation = Continuation(model, video, [question for question, _ in pairs], longest - 1)
    logits, total = continuation.start(), torch.zeros(len(pairs), device=model.device)
    for step in range(longest):
        if step:
            logits = continuation.step(ids[:, step - 1])
        chosen = logits.log_softmax(-1).gather(1, ids[:, step, None])[:, 0]
        total += torch.where(step < lengths, chosen, 0.0)
    return total.cpu()
