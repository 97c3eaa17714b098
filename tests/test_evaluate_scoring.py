"""Which option a reply names; and what cannot be read as one answer is never right."""

import pytest

from sttm.evaluation.questions import Question
from sttm.evaluation.scoring import Verdict, chosen_option, judge, normalised

OPTIONS = ("a cat", "two dogs", "A man walks.", "none")


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        (" B\n", 1),
        ("B)", 1),
        ("**B**", 1),
        ("B. two dogs", 1),
        ("B. something else", 1),
        ("(B) two dogs", 1),
        ("B) two dogs", 1),
        ("B: two dogs", 1),
        ("B two dogs", 1),
        ("two dogs", 1),
        ("Two dogs.", 1),
        ("The answer is B", 1),
        ("The best answer is (B).", 1),
        ("Answer: B", 1),
        ("Best option: (B)", 1),
        ("The correct option is **B**.", 1),
        ("A man walks", 2),
        ("A", 0),
        ("", None),
        ("E", None),
        ("(E) five", None),
        ("A man runs", None),
        ("I think it shows dogs", None),
        ("The answer is A man", None),
        ("The answer is A. No, the answer is B.", None),
        ("both a cat and two dogs", None),
        ("ABCD", None),
        ("Because", None),
    ],
)
def test_chosen_option(reply: str, chosen: int | None) -> None:
    assert chosen_option(reply, OPTIONS) == chosen


def test_a_repeated_option_cannot_be_named_by_its_text() -> None:
    options = ("Blue", "Red", "White", "Blue")
    assert chosen_option("Blue", options) is None
    assert chosen_option("D", options) == 3


def test_an_unreadable_reply_is_wrong_and_unparsed() -> None:
    question = Question("?", "two dogs", OPTIONS, 1, scoring="letter")
    assert judge(question, "B") == Verdict(True, True)
    assert judge(question, "C") == Verdict(False, True)
    assert judge(question, "no idea") == Verdict(False, False)


def test_exact_scoring_ignores_case_space_and_surrounding_punctuation_only() -> None:
    question = Question("What colour?", "Dark  Red")
    assert judge(question, " dark red.\n").is_right
    assert not judge(question, "red").is_right
    assert not judge(question, "darkred").is_right
    assert not judge(question, "").is_right
    assert normalised("“A”") != normalised("8")


def test_a_question_refuses_an_answer_that_is_no_option() -> None:
    with pytest.raises(ValueError, match="none of the options"):
        Question("?", "three", ("one", "two"))
    with pytest.raises(ValueError, match="at least two options"):
        Question("?", "one", ("one", "two"), scoring="letter")
    with pytest.raises(ValueError, match="is not the answer"):
        Question("?", "one", ("one", "two"), 1)
    with pytest.raises(ValueError, match="empty"):
        Question(" ", "one")
