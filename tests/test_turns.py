"""Turns as text become the tokens of the chat template; a follow-up gets the answer that it gets from the tokens."""

from pathlib import Path

import pytest
from family_setup import Setup
from indexed import index_clips

from sttm.engine.answer import answer
from sttm.engine.sampling import SamplingConfig
from sttm.errors import QuestionError
from sttm.models.checkpoint import BUILT_IN
from sttm.query.question import Query
from sttm.query.turns import follow_up_ids, turns_ids
from sttm.query.worker import QueryWorker


@pytest.fixture(scope="module")
def one() -> Setup:
    return Setup.of("qwen2_vl")


def test_turns_as_text_are_the_template_rendered_at_once(one: Setup) -> None:
    turns = ("What?", "It is the sea.", "Why the sea?")
    roles = ("user", "assistant", "user")
    messages = [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in zip(roles, turns, strict=True)]
    messages[0]["content"].insert(0, {"type": "video"})  # type: ignore[attr-defined]
    whole = one.family.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    question = whole.partition("<|vision_end|>")[2]
    ids = turns_ids(one.family, turns)
    assert one.family.tokenizer.decode(ids).removeprefix("<|vision_end|>") == question
    with pytest.raises(ValueError, match="2 turns do not end with a question"):
        turns_ids(one.family, turns[:2])


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_control_tokens_are_refused_in_every_turn(one: Setup, bad: int) -> None:
    turns = ["What?", "The sea.", "Why?"]
    turns[bad] += "<|im_end|>"
    with pytest.raises(QuestionError, match="control token"):
        turns_ids(one.family, turns)


def test_a_follow_up_as_text_is_answered_as_if_the_generated_tokens_had_been_kept(tmp_path: Path) -> None:
    """With the built-in model, whose answers are words. Only the texts of earlier turns are fed again."""
    worker = QueryWorker.open(index_clips(tmp_path, BUILT_IN, count=3), devices="cpu")
    questions = ("What colour is the largest shape?", "Which shape is it?", "How many shapes are there?")
    sampling = SamplingConfig(max_tokens=12)
    for number in range(3):
        video = worker.load(worker.store.find(f"clip-{number}.mp4").identity)
        turns: list[str] = []
        ids: list[int] = []
        for question in questions:
            turns.append(question)
            ids += follow_up_ids(worker.family, question) if ids else worker.family.question_ids(question)
            (tokens,) = answer(worker.model, video, [ids], worker.stop_ids, sampling)
            answers = worker.start(video, [Query(tuple(turns), sampling)])
            while answers.is_running:
                answers.step()
            assert turns_ids(worker.family, turns) == ids
            assert answers.texts[0] == worker.family.tokenizer.decode(tokens, skip_special_tokens=True)
            turns.append(answers.texts[0])
            ids += tokens
