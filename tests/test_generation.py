"""Rows of a batch draw their tokens and end independently of each other."""

import math

import pytest
import torch
from family_setup import HALF, Setup

from sttm.engine.answer import Continuation, Generation, answer
from sttm.engine.ready_video import ReadyVideo, ready
from sttm.engine.sampling import Sampler, SamplingConfig


@pytest.fixture(scope="module")
def one() -> Setup:
    return Setup.of("qwen2_vl")


@pytest.fixture(scope="module")
def video(one: Setup) -> ReadyVideo:
    return ready(one.model, one.prefill(HALF).cache)


def test_a_row_samples_the_same_alone_and_in_a_batch(one: Setup, video: ReadyVideo) -> None:
    questions = one.questions()
    configs = [SamplingConfig(max_tokens=4 + 3 * i, temperature=1.2 * (i != 1), top_p=0.9, seed=i) for i in range(3)]
    alone = [answer(one.model, video, [q], frozenset(), c)[0] for q, c in zip(questions, configs, strict=True)]
    continuation = Continuation(one.model, video, questions, room=10)
    generation = Generation(continuation, continuation.start(), frozenset(), configs)
    rows: list[list[int]] = [[], [], []]
    while generation.is_running:
        for row, token in zip(rows, generation.step(), strict=True):
            row.extend([] if token is None else [token])
    assert rows == alone
    assert [len(row) for row in rows] == [4, 7, 10]
    assert generation.ended == ["length"] * 3


@pytest.mark.parametrize(
    ("temperature", "top_p", "first"),
    [(1e-39, 1.0, 5.0), (2e-4, 1e-9, 3e37), (1.5, 1.0, float("nan")), (1.5, 1.0, float("inf"))],
)
def test_no_temperature_and_no_logits_hurt_other_rows(temperature: float, top_p: float, first: float) -> None:
    """A temperature that float32 cannot divide by, and logits that are not numbers."""
    innocent = SamplingConfig(temperature=1.5, seed=3)
    evil = SamplingConfig(temperature=temperature, top_p=top_p, seed=4)
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    alone = Sampler([innocent])(logits[:1].clone(), [0])
    logits[1, 7] = first
    tokens = Sampler([innocent, evil])(logits, [0, 1])
    assert tokens[0] == alone[0]
    assert 0 <= int(tokens[1]) < 50
    assert not math.isfinite(first) or int(tokens[1]) == 7


def test_a_cut_row_leaves_the_others_as_they_were(one: Setup, video: ReadyVideo) -> None:
    questions, sampling = one.questions(), SamplingConfig(max_tokens=8)
    whole = answer(one.model, video, questions, frozenset(), sampling)
    continuation = Continuation(one.model, video, questions, room=8)
    generation = Generation(continuation, continuation.start(), frozenset(), [sampling] * 3)
    steps = [generation.step()]
    generation.end(0)
    generation.end(2)
    while generation.is_running:
        steps.append(generation.step())
    assert [step[1] for step in steps] == whole[1]
    assert [step[0] for step in steps] == [whole[0][0], *[None] * 7]
    assert generation.ended == ["cut", "length", "cut"]


def test_tokens_beyond_the_room_are_kept(one: Setup, video: ReadyVideo) -> None:
    question = one.questions()[1]
    small, large = (Continuation(one.model, video, [question], room) for room in (0, 40))
    logits = [small.start(), large.start()]
    for token in range(12):
        logits = [c.step(torch.tensor([token])) for c in (small, large)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_top_p_draws_only_from_the_likeliest(one: Setup) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    seen = {
        int(Sampler([SamplingConfig(temperature=1.0, top_p=p, seed=seed)])(logits, [0]))
        for seed in range(300)
        for p in (0.6,)
    }
    assert seen == {0, 1}
    draws = [int(Sampler([SamplingConfig(temperature=1.0, seed=s)])(logits, [0])) for s in range(2000)]
    shares = torch.bincount(torch.tensor(draws), minlength=4) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.04, rtol=0)
