"""The scheduler with a real model: questions that wait together are answered together, and nothing is forgotten."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from indexed import index_clips

from sttm.engine.sampling import SamplingConfig
from sttm.engine.scheduler import BusyError, Ended, Piece, ScheduleConfig, Scheduler
from sttm.engine.worker import Query, QueryWorker, open_checkpoint
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> QueryWorker:
    store = Store.open(index_clips(tmp_path_factory.mktemp("scheduled"), qwen2_vl_folder, count=2))
    return QueryWorker(store, open_checkpoint(store.manifest(store.find("clip-0.mp4").identity)), "cpu")


@pytest.fixture
def gated(worker: QueryWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Videos load only once the event is set."""
    gate, load = threading.Event(), worker.load

    def wait_and_load(identity: str) -> Any:
        gate.wait(30)
        return load(identity)

    monkeypatch.setattr(worker, "load", wait_and_load)
    yield gate
    gate.set()


def identity(worker: QueryWorker, number: int = 0) -> str:
    return worker.store.find(f"clip-{number}.mp4").identity


def query(text: str, max_tokens: int = 6) -> Query:
    return Query((text,), SamplingConfig(max_tokens=max_tokens))


def alone(worker: QueryWorker, video: int, asked: Query) -> str:
    answers = worker.start(worker.videos.get(identity(worker, video)), [asked])
    while answers.is_running:
        answers.step()
    return answers.texts[0]


def heard(events: "queue.Queue[Any]") -> tuple[str, Any]:
    """The text up to the end, and the end."""
    text = ""
    while isinstance(event := events.get(timeout=60), Piece):
        text += event.text
    return text, event


def test_questions_of_two_videos_and_lengths_each_get_their_own_answer(
    worker: QueryWorker, gated: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    start = worker.start
    monkeypatch.setattr(worker, "start", lambda video, queries: sizes.append(len(queries)) or start(video, queries))
    scheduler = Scheduler(worker, ScheduleConfig(loaders=32))
    asked = [(n % 2, query("What is it?" + " Why?" * (n % 3), 4 + n % 5)) for n in range(24)]
    replies: list[queue.Queue[Any]] = [queue.Queue() for _ in asked]
    for (video, one), reply in zip(asked, replies, strict=True):
        scheduler.submit(identity(worker, video), one, reply.put)
    gated.set()
    results = [heard(reply) for reply in replies]
    scheduler.close()
    assert len(sizes) < 24  # some were answered together
    monkeypatch.undo()
    for (video, one), (text, ended) in zip(asked, results, strict=True):
        assert text == alone(worker, video, one)
        assert isinstance(ended, Ended)
        assert 0 < ended.load_s <= ended.ttft_s <= ended.total_s
    assert (scheduler.waiting, scheduler.running) == (0, 0)


def test_too_many_are_refused_and_a_cancelled_one_is_never_begun(worker: QueryWorker, gated: threading.Event) -> None:
    scheduler = Scheduler(worker, ScheduleConfig(max_waiting=2))
    kept: queue.Queue[Any] = queue.Queue()
    dropped: queue.Queue[Any] = queue.Queue()
    scheduler.submit(identity(worker), query("What?"), kept.put)
    scheduler.submit(identity(worker), query("Why?"), dropped.put).cancel()
    with pytest.raises(BusyError, match="2 questions are waiting"):
        scheduler.submit(identity(worker), query("How?"), kept.put)
    gated.set()
    assert isinstance(heard(kept)[1], Ended)
    scheduler.close()
    assert dropped.empty()
    with pytest.raises(BusyError):
        scheduler.submit(identity(worker), query("Too late?"), kept.put)
    assert not scheduler.is_alive


def test_what_cannot_be_loaded_or_asked_is_heard_and_costs_no_other(worker: QueryWorker) -> None:
    scheduler = Scheduler(worker)
    missing, bad, good = (queue.Queue[Any]() for _ in range(3))
    scheduler.submit("0" * 64, query("What?"), missing.put)
    scheduler.submit(identity(worker), Query(("question", "answer")), bad.put)
    scheduler.submit(identity(worker), query("What?"), good.put)
    assert isinstance(heard(missing)[1], MissingObjectError)
    assert isinstance(heard(bad)[1], ValueError)
    assert heard(good)[0] == alone(worker, 0, query("What?"))
    scheduler.close()


def test_closing_answers_what_was_accepted(worker: QueryWorker) -> None:
    scheduler, reply = Scheduler(worker), queue.Queue[Any]()
    scheduler.submit(identity(worker), query("What?", 40), reply.put)
    scheduler.close()
    assert heard(reply)[1].completion_tokens == 40
