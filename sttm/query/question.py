"""A question about a video: what it consists of, and whether it can be asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sttm.engine.sampling import SamplingConfig

MAX_CHARS, MAX_OPTIONS = 32_000, 64


@dataclass(frozen=True)
class Query:
    """The turns of a conversation about a video, the last of which is to be answered.

    Attributes:
        turns: question, answer, question, and so on. The last turn is the question to answer.
        sampling: how the answer is generated, and where it ends.
    """

    turns: tuple[str, ...]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def fault(question: str, options: Sequence[str] = ()) -> str:
    """Why a question cannot be asked. The text is empty if it can be asked.

    Args:
        question: the text of the question.
        options: answers to choose from; none means that the answer is generated.
    """
    if not question.strip():
        return "the question is empty"
    if len(question) > MAX_CHARS:
        return f"the question has {len(question)} characters, over {MAX_CHARS}"
    if options and not 2 <= len(options) <= MAX_OPTIONS:
        return f"{len(options)} options; give 2 to {MAX_OPTIONS}, or none"
    if any(not option or len(option) > MAX_CHARS for option in options):
        return f"an option is empty or has over {MAX_CHARS} characters"
    for text in (question, *options):
        try:
            text.encode()
        except UnicodeEncodeError:  # Python holds bytes that are not UTF-8 as halves of surrogate pairs.
            return f"{text[:80]!r} is not valid Unicode; write it in UTF-8"
    return ""
