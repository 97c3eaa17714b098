"""Several turns about one stored video: a follow-up feeds its own tokens only, after those of the turns before it."""

from collections.abc import Iterator, Sequence

import torch

from sttm.engine.answer import Continuation, Generation
from sttm.engine.context import require_room
from sttm.engine.ready_video import ReadyVideo
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ModelError, QuestionError
from sttm.models.base import Family
from sttm.models.language_model import LanguageModel

_ANSWER, _QUESTION = "\x00answer\x00", "\x00question\x00"  # stand for themselves while the template is rendered


def text_ids(family: Family, text: str) -> list[int]:
    """Ids of plain text, such as an answer or an option.

    Raises:
        QuestionError: it holds a control token, which would end its turn or stand for a video.
    """
    _refuse_control_tokens(family, text)
    return list(family.tokenizer(text, add_special_tokens=False)["input_ids"])


def follow_up_ids(family: Family, question: str) -> list[int]:
    """Ids that follow an answer's text: the end of its turn, the next question, the start of the next answer.

    Raises:
        QuestionError: the question holds a control token.
    """
    _refuse_control_tokens(family, question)
    after = _between_turns(family).replace(_QUESTION, question)
    return list(family.tokenizer(after, add_special_tokens=False)["input_ids"])


def turns_ids(family: Family, turns: Sequence[str]) -> list[int]:
    """Ids that follow the prefix: question, answer, question, ... as text, the last a question.

    Raises:
        ValueError: the turns do not end with a question.
        QuestionError: one of them holds a control token.
    """
    if len(turns) % 2 == 0:
        raise ValueError(f"{len(turns)} turns do not end with a question")
    ids = family.question_ids(turns[0])
    for answer, question in zip(turns[1::2], turns[2::2], strict=True):
        ids += [*text_ids(family, answer), *follow_up_ids(family, question)]
    return ids


class Conversation:
    """Turns of one talk. What was asked and answered stays in the cache as the tokens it was.

    Args:
        model: the language model that made the video's cache.
        video: the cache, ready on the model's device.
        family: the model's adapter.
        stop_ids: tokens that end an answer.
    """

    def __init__(self, model: LanguageModel, video: ReadyVideo, family: Family, stop_ids: frozenset[int]) -> None:
        self._model, self._video, self._family, self._stop_ids = model, video, family, stop_ids
        self._ids: list[int] = []  # of all turns; the continuation has seen the first `fed` of them
        self._continuation: Continuation | None = None

    def ask(self, question: str, sampling: SamplingConfig) -> Iterator[int]:
        """Token ids of the answer, as they come. Leaving early is fine: the answer then is what came so far.

        Raises:
            QuestionError: the question holds a control token, or all turns so far are too long for the model.
        """
        follows = self._continuation is not None
        asked = follow_up_ids(self._family, question) if follows else self._family.question_ids(question)
        require_room(self._model, self._video, len(self._ids) + len(asked), sampling.max_tokens)
        self._ids += asked
        if self._continuation is None:
            self._continuation = Continuation(self._model, self._video, [self._ids.copy()], sampling.max_tokens)
            logits = self._continuation.start()
        else:
            new = torch.tensor([self._ids[self._continuation.fed :]], device=self._model.device)
            self._continuation.expect(new.shape[1] + sampling.max_tokens)
            logits = self._continuation.feed(new)
        generation = Generation(self._continuation, logits, self._stop_ids, [sampling])
        while generation.is_running:
            (token,) = generation.step()
            if token is not None:
                self._ids.append(token)
                yield token


def _refuse_control_tokens(family: Family, text: str) -> None:
    if control := [token for token in family.tokenizer.get_added_vocab() if token in text]:
        raise QuestionError(f"the text holds the control token {control[0]!r}; leave it out")


def _between_turns(family: Family) -> str:
    """The chat template's text between an answer and the next one, with _QUESTION in place of the question."""
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]},
        {"role": "user", "content": [{"type": "text", "text": _QUESTION}]},
    ]
    text = family.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    _, answer, after = text.partition(_ANSWER)
    if not answer or _QUESTION not in after:
        raise ModelError(f"this {family.config.model_type} checkpoint's chat template renders no second turn")
    return str(after)
