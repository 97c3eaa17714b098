"""The actor of the answer job, in this process: what one question, or too little memory, costs the others."""

import os
from pathlib import Path

import pytest
import torch
from indexed import index_clips

from jobs.answering.actor import AnswerActor
from jobs.answering.question_task import QuestionTask
from jobs.answering.questions import Question
from jobs.config import JobConfig
from sttm.engine.sampling import SamplingConfig
from sttm.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Store:
    return Store.open(index_clips(tmp_path_factory.mktemp("actor"), qwen2_vl_folder, count=1))


@pytest.fixture
def actor(store: Store) -> AnswerActor:
    settings = JobConfig(sampling=SamplingConfig(max_tokens=2))
    actor = AnswerActor(store.storage.url, store.find("clip-0.mp4").identity, settings, "run")
    actor.load()
    return actor


def tasks_of(store: Store, questions: list[str], options: tuple[str, ...] = ()) -> list[QuestionTask]:
    row = store.find("clip-0.mp4")
    return [
        QuestionTask(str(number), Question(str(number), "clip-0.mp4", text, options), row.video_id, row.identity)
        for number, text in enumerate(questions)
    ]


def sizes_of_batches(actor: AnswerActor, monkeypatch: pytest.MonkeyPatch, name: str, at_most: int = 64) -> list[int]:
    """Rows of every batch that the worker is given from now on; more than `at_most` do not fit into memory."""
    sizes: list[int] = []
    method = getattr(actor._worker, name)

    def counted(video: object, rows: list[object], *more: object) -> object:
        sizes.append(len(rows))
        if len(rows) > at_most:
            raise RuntimeError("out of memory")
        return method(video, rows, *more)

    monkeypatch.setattr(actor._worker, name, counted)
    return sizes


def test_a_question_that_cannot_be_asked_leaves_the_others_in_one_batch(
    actor: AnswerActor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of_batches(actor, monkeypatch, "start")
    rows = actor.answer(tasks_of(store, ["What?", "Bad <|im_end|>", "Why?", "Who is it?"]))
    assert {row.id: row.error_code for row in rows} == {"0": "", "1": "bad_question", "2": "", "3": ""}
    assert sizes == [3]


def test_a_long_question_is_padded_onto_no_other(
    actor: AnswerActor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of_batches(actor, monkeypatch, "start")
    rows = actor.answer(tasks_of(store, ["What?"] * 20 + ["the colour of the sea, " * 60]))
    assert all(row.status == "ok" for row in rows)
    assert sizes == [20, 1]


@pytest.mark.parametrize(("name", "options"), [("start", ()), ("choose", ("red", "blue"))])
def test_what_does_not_fit_into_memory_is_halved(
    actor: AnswerActor, store: Store, monkeypatch: pytest.MonkeyPatch, name: str, options: tuple[str, ...]
) -> None:
    sizes = sizes_of_batches(actor, monkeypatch, name, at_most=2)
    rows = actor.answer(tasks_of(store, ["What?"] * 6, options))
    assert [row.status for row in rows] == ["ok"] * 6
    assert sizes == [6, 3, 1, 2, 3, 1, 2]


def test_no_question_is_tried_again_on_a_lost_gpu(
    actor: AnswerActor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(actor._worker, "start", lose)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit, match="70"):
        actor.answer(tasks_of(store, ["What?"] * 6))
