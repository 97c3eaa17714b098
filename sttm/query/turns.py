"""Token ids of the turns of a conversation, as the model reads them after a video."""

from collections.abc import Sequence

from sttm.errors import ModelError, QuestionError
from sttm.models.base import Family

_ANSWER, _QUESTION = "\x00answer\x00", "\x00question\x00"  # mark the places of the texts in the rendered template


def text_ids(family: Family, text: str) -> list[int]:
    """Token ids of plain text, such as an answer or an option.

    Raises:
        QuestionError: the text holds a control token, which would end its turn or stand for a video.
    """
    _refuse_control_tokens(family, text)
    return list(family.tokenizer(text, add_special_tokens=False)["input_ids"])


def follow_up_ids(family: Family, question: str) -> list[int]:
    """Token ids that follow an answer: the end of its turn, the next question, the start of the next answer.

    Raises:
        QuestionError: the question holds a control token.
        ModelError: the model's chat template cannot render a second turn.
    """
    _refuse_control_tokens(family, question)
    after = _between_turns(family).replace(_QUESTION, question)
    return list(family.tokenizer(after, add_special_tokens=False)["input_ids"])


def turns_ids(family: Family, turns: Sequence[str]) -> list[int]:
    """Token ids of question, answer, question, and so on, the last turn a question.

    Raises:
        ValueError: the turns do not end with a question.
        QuestionError: one of the turns holds a control token.
        ModelError: there is more than one turn, and the model's chat template cannot render a second one.
    """
    if len(turns) % 2 == 0:
        raise ValueError(f"{len(turns)} turns do not end with a question")
    ids = family.question_ids(turns[0])
    for answer, question in zip(turns[1::2], turns[2::2], strict=True):
        ids += [*text_ids(family, answer), *follow_up_ids(family, question)]
    return ids


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
