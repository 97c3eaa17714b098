"""Decode steps replayed as a CUDA graph give the same tokens as steps launched kernel by kernel."""

import threading
from collections.abc import Sequence

import pytest
import torch
from checkpoints import FAMILIES
from family_setup import HALF, Setup

from sttm.engine.answer import Continuation, Generation, answer
from sttm.engine.ready_video import ReadyVideo, ready
from sttm.engine.sampling import SamplingConfig
from sttm.engine.step_graph import captured
from sttm.models.language_model import LanguageModel

LONG = SamplingConfig(max_tokens=150)  # over more than two sizes of the buffers of the question cache


def on_gpu(family: str) -> tuple[Setup, LanguageModel, ReadyVideo]:
    setup = Setup.of(family)
    model = setup.checkpoint.load_language_model("cuda")
    return setup, model, ready(model, setup.prefill(HALF).cache)


def launched(
    model: LanguageModel, video: ReadyVideo, questions: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """Greedy tokens without a graph. No room is announced, so that no graph would repay its capture."""
    continuation = Continuation(model, video, questions, 0)
    tokens, steps = continuation.start().argmax(-1), []
    for _ in range(count):
        steps.append(tokens.tolist())
        tokens = continuation.step(tokens).argmax(-1)
        assert continuation._graph is None
    return [list(row) for row in zip(*steps, strict=True)]


def test_a_cpu_runs_kernel_by_kernel() -> None:
    assert captured(lambda ids, column: ids + column, 2, torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_replayed_steps_equal_launched_ones(family: str, rows: int) -> None:
    setup, model, video = on_gpu(family)
    questions = [setup.questions()[row % 3] + [5 + row] for row in range(rows)]
    assert answer(model, video, questions, frozenset(), LONG) == launched(model, video, questions, 150)


@pytest.mark.gpu
def test_a_graph_is_used_where_it_pays_and_only_there() -> None:
    setup, model, video = on_gpu("qwen2_vl")
    short, long = (Continuation(model, video, setup.questions(), room) for room in (4, 40))
    for continuation in (short, long):
        tokens = continuation.start().argmax(-1)
        for _ in range(4):
            tokens = continuation.step(tokens).argmax(-1)
    assert short._graph is None
    assert long._graph is not None


@pytest.mark.gpu
def test_rows_that_end_leave_the_others_as_they_are() -> None:
    setup, model, video = on_gpu("qwen2_vl")
    questions = setup.questions()
    whole = launched(model, video, questions, 60)
    continuation = Continuation(model, video, questions, 60)
    generation = Generation(continuation, continuation.start(), frozenset(), [LONG] * 3)
    steps, replayed = [], []
    for number in range(60):
        if number in (10, 30):
            generation.end(2 if number == 10 else 0)
        steps.append(generation.step())
        replayed.append(continuation._graph is not None)
    assert [step[1] for step in steps] == whole[1]
    assert [step[0] for step in steps[:30]] == whole[0][:30]
    assert [step[2] for step in steps[:10]] == whole[2][:10]
    for with_as_many_rows in (replayed[:10], replayed[10:30], replayed[30:]):
        assert any(with_as_many_rows)


@pytest.mark.gpu
def test_batches_take_turns_while_other_threads_load_videos() -> None:
    """Graphs share memory, and the work of other threads on the device must not spoil a capture."""
    setup, model, video = on_gpu("qwen2_vl")
    cache, questions, over = setup.prefill(HALF).cache, setup.questions(), threading.Event()
    expected = launched(model, video, questions, 100)

    def load() -> None:
        while not over.is_set():
            ready(model, cache)
            torch.empty(1 << 24, dtype=torch.uint8, pin_memory=True).to("cuda", non_blocking=True)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            batches = [Continuation(model, video, questions, 100) for _ in range(3)]
            generations = [Generation(c, c.start(), frozenset(), [LONG] * 3) for c in batches]
            steps = [[generation.step() for generation in generations] for _ in range(100)]
            for batch in range(3):
                assert [list(row) for row in zip(*(step[batch] for step in steps), strict=True)] == expected
    finally:
        over.set()
        for thread in threads:
            thread.join()
