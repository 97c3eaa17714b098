"""Scores of options equal those of one forward of transformers each, and are computed in few steps of bounded size."""

from typing import Any

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import NO_MERGE, Setup
from torch import Tensor

from sttm.engine import answer
from sttm.engine.answer import Continuation
from sttm.engine.likelihood import score_options, scoring
from sttm.engine.ready_video import ready

OPTIONS = [[[65, 66, 67], [70], [65]], [], [[80, 81], [82, 83, 84, 85] * 30]]


def expected(setup: Setup, question: list[int], option: list[int]) -> float:
    """One forward of the plain model over video, question and option."""
    logits = setup.plain_logits(question + option)[-len(option) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(option)[:, None]).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_one_forward_of_transformers(family: str) -> None:
    setup = Setup.of(family)
    video = ready(setup.model, setup.prefill(NO_MERGE).cache)
    scores = score_options(setup.model, video, setup.questions(), OPTIONS)
    for question, options, score in zip(setup.questions(), OPTIONS, scores, strict=True):
        wanted = torch.tensor([expected(setup, question, option) for option in options])
        torch.testing.assert_close(score, wanted, rtol=1e-4, atol=1e-3)


def test_options_are_fed_once_and_in_bounded_pieces_to_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long option costs one more feed, not one a token. An option too long for one feed is split into steps."""
    setup = Setup.of("qwen2_vl")
    video = ready(setup.model, setup.prefill(NO_MERGE).cache)
    fed: list[int] = []
    run = Continuation._hidden

    def counting(self: Continuation, ids: Tensor, *rest: Any) -> Tensor:
        fed.append(ids.numel())
        return run(self, ids, *rest)

    monkeypatch.setattr(Continuation, "_hidden", counting)
    arguments = (setup.model, video, setup.questions(), OPTIONS)
    whole = score_options(*arguments)
    assert len(fed) == 2
    fed.clear()
    monkeypatch.setattr(answer, "_TOKENS_AT_ONCE", 64)
    pieces = sum(1 for _ in scoring(*arguments))
    assert pieces == len(fed) > 5
    assert max(fed) <= 64
    for one, other in zip(whole, score_options(*arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
