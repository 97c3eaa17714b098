"""Decides whether a reply is right. A reply that cannot be read as one option is wrong and counted as unparsed."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from sttm.evaluation.questions import Question

_ALONE = re.compile(r"\(?([A-Za-z])\)?[.,:;!]?")
_LEADING = re.compile(r"(?:\(([A-Za-z])\)|([A-Z])[.):](?=\s))\s*(.*)", re.DOTALL)
_BARE = re.compile(r"([A-Z])\s+(.+)", re.DOTALL)
_STATED = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*\**\(?([A-Z])\)?\**(?=\s*(?:[.,:;!)]|$))")
_EDGES = " \t\r\n.,:;!?\"'`*_()[]"


class Verdict(NamedTuple):
    """Whether a reply is right, and whether it could be read as one option; if it could not, it is not right."""

    is_right: bool
    is_parsed: bool = True


def judge(question: Question, reply: str) -> Verdict:
    """Compare a generated reply with the right answer."""
    if question.scoring == "exact":
        return Verdict(normalised(reply) == normalised(question.answer))
    chosen = chosen_option(reply, question.options)
    return Verdict(chosen is not None and chosen == question.right, chosen is not None)


def normalised(text: str) -> str:
    """Text without case, surrounding punctuation and runs of spaces: " Red.\\n" -> "red"."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().strip(_EDGES).split())


def chosen_option(reply: str, options: Sequence[str]) -> int | None:
    """The index of the option that a reply names; None where it names none, or more than one.

    "B" "(b)" "B." "B. two dogs" "(B) two dogs" "B) two" "The answer is (B)." "Best option: B" "two dogs"
    all name the second of ("a cat", "two dogs"); "A man walks" does not name the first.
    """
    text = reply.strip().strip("*_`").strip()
    if match := _ALONE.fullmatch(text):
        return _index(match[1], options)
    if match := _LEADING.match(text):
        return _index(match[1] or match[2], options)
    if match := _BARE.fullmatch(text):
        index = _index(match[1], options)
        if index is not None and normalised(match[2]) == normalised(options[index]):
            return index
    stated = {_index(letter, options) for letter in _STATED.findall(text)}
    if len(stated) == 1:
        return stated.pop()
    same = [i for i, option in enumerate(options) if normalised(option) == normalised(text)]
    return same[0] if len(same) == 1 else None


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if index < len(options) else None
