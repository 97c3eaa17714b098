"""The scheduler with a real model: it answers questions that wait together in one batch, and it answers every one."""

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from indexed import index_clips

from sttm.engine import answer, batching
from sttm.engine.answer import Continuation
from sttm.engine.sampling import SamplingConfig
from sttm.errors import QuestionError
from sttm.query.cache_tier import CacheConfig, CacheTier
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query
from sttm.query.request import Ended, Piece
from sttm.query.scheduler import BusyError, Scheduler
from sttm.query.worker import QueryWorker
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> QueryWorker:
    store = Store.open(index_clips(tmp_path_factory.mktemp("scheduled"), qwen2_vl_folder, count=2))
    return QueryWorker(store, open_checkpoint(store.manifest(store.find("clip-0.mp4").identity)), "cpu")


@pytest.fixture
def gated(worker: QueryWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No video is loaded, and videos load only once the event is set."""
    gate, get = threading.Event(), worker.videos.get

    def wait_and_load(identities: tuple[str, ...]) -> Any:
        gate.wait(30)
        return get(*identities)

    monkeypatch.setattr(worker, "videos", CacheTier(wait_and_load, "cpu", 1 << 30))
    yield gate
    gate.set()


@pytest.fixture
def started(worker: QueryWorker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were begun, and of those that failed to begin."""
    sizes: list[int] = []
    start = worker.start

    monkeypatch.setattr(worker, "start", lambda *args: sizes.append(len(args[1])) or start(*args))
    return sizes


def identities(worker: QueryWorker, number: int = 0) -> tuple[str, ...]:
    return (worker.store.find(f"clip-{number}.mp4").identity,)


def query(text: str, max_tokens: int = 6) -> Query:
    return Query((text,), SamplingConfig(max_tokens=max_tokens))


def alone(worker: QueryWorker, video: int, asked: Query) -> str:
    answers = worker.start(worker.videos.get(*identities(worker, video)), [asked])
    while answers.is_running:
        answers.step()
    return answers.texts[0]


def received(events: "queue.Queue[Any]") -> tuple[str, Any]:
    """The text of an answer, and its last event."""
    text = ""
    while isinstance(event := events.get(timeout=60), Piece):
        text += event.text
    return text, event


def test_questions_of_two_videos_and_lengths_each_get_their_own_answer(
    worker: QueryWorker, gated: threading.Event, started: list[int]
) -> None:
    scheduler = Scheduler(worker, loaders=32)
    asked = [(n % 2, query("What is it?" + " Why?" * (n % 3), 4 + n % 5)) for n in range(24)]
    replies: list[queue.Queue[Any]] = [queue.Queue() for _ in asked]
    for (video, one), reply in zip(asked, replies, strict=True):
        scheduler.submit(identities(worker, video), one, reply.put)
    gated.set()
    results = [received(reply) for reply in replies]
    scheduler.close()
    assert len(started) < 24  # some were answered together
    for (video, one), (text, ended) in zip(asked, results, strict=True):
        assert text == alone(worker, video, one)
        assert isinstance(ended, Ended)
        assert 0 < ended.load_s <= ended.ttft_s <= ended.total_s
    assert (scheduler.waiting, scheduler.running) == (0, 0)


def test_too_many_are_refused_and_a_cancelled_one_is_never_begun(worker: QueryWorker, gated: threading.Event) -> None:
    scheduler = Scheduler(worker, max_waiting=2)
    kept: queue.Queue[Any] = queue.Queue()
    dropped: queue.Queue[Any] = queue.Queue()
    scheduler.submit(identities(worker), query("What?"), kept.put)
    request = scheduler.submit(identities(worker), query("Why?"), dropped.put)
    with pytest.raises(BusyError, match="2 questions are waiting"):
        scheduler.submit(identities(worker), query("How?"), kept.put)
    request.cancel()
    gated.set()
    assert isinstance(received(kept)[1], Ended)
    scheduler.close()
    assert dropped.empty()
    with pytest.raises(BusyError):
        scheduler.submit(identities(worker), query("Too late?"), kept.put)
    assert not scheduler.is_alive


def test_what_cannot_be_loaded_or_asked_is_an_error_and_costs_no_other(worker: QueryWorker) -> None:
    scheduler = Scheduler(worker)
    missing, bad, good = (queue.Queue[Any]() for _ in range(3))
    scheduler.submit(("0" * 64,), query("What?"), missing.put)
    scheduler.submit(identities(worker), Query(("question", "answer")), bad.put)
    scheduler.submit(identities(worker), query("What?"), good.put)
    assert isinstance(received(missing)[1], MissingObjectError)
    assert isinstance(received(bad)[1], ValueError)
    assert received(good)[0] == alone(worker, 0, query("What?"))
    scheduler.close()


def test_closing_answers_what_was_accepted(worker: QueryWorker) -> None:
    scheduler, reply = Scheduler(worker), queue.Queue[Any]()
    scheduler.submit(identities(worker), query("What?", 40), reply.put)
    scheduler.close()
    assert received(reply)[1].completion_tokens == 40


def ask_all(worker: QueryWorker, gate: threading.Event, asked: list[Query]) -> list[tuple[str, Any]]:
    """The texts and last events of questions about one video that wait together."""
    scheduler = Scheduler(worker)
    replies: list[queue.Queue[Any]] = [queue.Queue() for _ in asked]
    for one, reply in zip(asked, replies, strict=True):
        scheduler.submit(identities(worker), one, reply.put)
    time.sleep(0.05)
    gate.set()
    results = [received(reply) for reply in replies]
    scheduler.close()
    return results


def test_a_long_question_has_a_batch_of_its_own(
    worker: QueryWorker, gated: threading.Event, started: list[int]
) -> None:
    asked = [query("What is it?")] * 3 + [query("why? " * 200)] + [query("What is it?")] * 12
    results = ask_all(worker, gated, asked)
    assert started == [15, 1]
    assert {text for text, _ in results[:3]} == {alone(worker, 0, asked[0])}
    assert results[3][0] == alone(worker, 0, asked[3])


def test_what_cannot_be_asked_leaves_the_others_together(
    worker: QueryWorker, gated: threading.Event, started: list[int]
) -> None:
    bad = [query("What <|im_end|>"), query("What?", 10**6), Query(("question", "answer"))]
    results = ask_all(worker, gated, [query("What?"), *bad, *[query("What?")] * 7])
    assert started == [8]
    assert [type(end) for _, end in results[1:4]] == [QuestionError, QuestionError, ValueError]
    assert sum(isinstance(end, Ended) for _, end in results) == 8


def test_too_little_memory_halves_a_batch(
    worker: QueryWorker, gated: threading.Event, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = worker.start

    def full(*args: Any) -> Any:
        answers = start(*args)
        if len(args[1]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answers

    monkeypatch.setattr(worker, "start", full)
    results = ask_all(worker, gated, [query("What?")] * 8)
    assert started == [8, 4, 2, 2, 4, 2, 2]
    assert {text for text, _ in results} == {alone(worker, 0, query("What?"))}


def test_after_an_error_that_a_gpu_does_not_recover_from_it_is_not_alive(
    worker: QueryWorker, gated: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(worker, "start", fail)
    scheduler = Scheduler(worker, max_rows=1)
    replies: list[queue.Queue[Any]] = [queue.Queue() for _ in range(3)]
    for number, reply in enumerate(replies):
        scheduler.submit(identities(worker, number % 2), query("What?"), reply.put)
    assert scheduler.is_alive
    gated.set()
    for reply in replies:
        assert isinstance(received(reply)[1], torch.AcceleratorError)
    assert not scheduler.is_alive
    with pytest.raises(BusyError):
        scheduler.submit(identities(worker), query("What?"), replies[0].put)
    scheduler.close()
    assert scheduler.waiting == 0


@pytest.fixture
def forgetful(worker: QueryWorker, monkeypatch: pytest.MonkeyPatch) -> tuple[QueryWorker, list[int]]:
    """A worker that keeps no video, and the number of videos that were in memory after each load."""
    small = QueryWorker(worker.store, worker.checkpoint, "cpu", CacheConfig(device_gb=0))
    load, loaded, alive = small.load, list[Any](), list[int]()

    def counting(*identities: str) -> Any:
        video = load(*identities)
        loaded.append(weakref.ref(video))
        alive.append(sum(ref() is not None for ref in loaded))
        return video

    monkeypatch.setattr(small, "load", counting)
    return small, alive


def many_videos(worker: QueryWorker) -> list[tuple[str, ...]]:
    """Fourteen videos, put together from two artifacts."""
    names = [identities(worker, number)[0] for number in (0, 1)]
    return [some for count in (1, 2, 3) for some in product(names, repeat=count)]


def test_questions_that_wait_hold_no_video(forgetful: tuple[QueryWorker, list[int]]) -> None:
    """Only the video that is asked about and those loaded for the next questions are on the device."""
    small, alive = forgetful
    scheduler = Scheduler(small, max_rows=1, loaders=2)
    videos = many_videos(small)
    replies: list[queue.Queue[Any]] = [queue.Queue() for _ in videos]
    for video, reply in zip(videos, replies, strict=True):
        scheduler.submit(video, query("What?", 20), reply.put)
    assert all(isinstance(received(reply)[1], Ended) for reply in replies)
    scheduler.close()
    assert len(alive) == len(videos) == 14
    assert max(alive) <= 4


class Patient(Scheduler):
    """A scheduler that makes no step before four batches have begun, however slowly their videos load."""

    has_begun = False

    def _step(self) -> None:
        self.has_begun = self.has_begun or len(self._batches) == 4
        if self.has_begun:
            super()._step()
        else:
            time.sleep(0.001)


def test_a_video_that_is_asked_about_is_not_loaded_again(forgetful: tuple[QueryWorker, list[int]]) -> None:
    """It is not loaded while there is no room for more questions, nor when there is room again."""
    small, alive = forgetful
    videos = many_videos(small)[:4]
    scheduler, again = Patient(small, max_rows=4, loaders=1), queue.Queue[Any]()

    for video in videos:
        asked = list[tuple[str, ...]]()

        def on_event(event: Any, video: tuple[str, ...] = video, asked: list[tuple[str, ...]] = asked) -> None:
            if isinstance(event, Piece) and not asked:
                asked.append(video)
                scheduler.submit(video, query("Why?"), again.put)

        scheduler.submit(video, query("What?", 60), on_event)
    ends = [received(again)[1] for _ in videos]
    scheduler.close()
    assert all(isinstance(end, Ended) for end in ends)
    assert len(alive) == 4


def test_a_question_about_a_video_at_hand_begins_with_the_next_turn(
    worker: QueryWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other batches make no step between the submission and the begin of its batch."""
    begun, start, reply = list[Any](), worker.start, queue.Queue[Any]()
    turns = list[int]()

    def noting(*args: Any) -> Any:
        turns.extend(answers.completion_tokens[0] for answers in begun)
        begun.append(start(*args))
        return begun[-1]

    worker.load(*identities(worker, 1))
    monkeypatch.setattr(worker, "start", noting)
    scheduler = Scheduler(worker)

    def on_event(event: Any) -> None:
        if isinstance(event, Piece) and not turns:
            turns.append(begun[0].completion_tokens[0])
            scheduler.submit(identities(worker, 1), query("Why?"), reply.put)

    scheduler.submit(identities(worker), query("What?", 40), on_event)
    assert isinstance(received(reply)[1], Ended)
    scheduler.close()
    submitted, started = turns
    assert started == submitted


def test_no_more_batches_about_a_video_than_allowed_and_the_oldest_question_first(
    worker: QueryWorker, gated: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds however many batches the waiting questions make."""
    monkeypatch.setattr(batching, "_MOST_TOKENS", 1)
    begun, texts, start, at_once = list[Any](), list[str](), worker.start, list[int]()

    def noting(*args: Any) -> Any:
        begun.append(start(*args))
        texts.extend(one.turns[0] for one in args[1])
        at_once.append(sum(answers.is_running for answers in begun))
        return begun[-1]

    monkeypatch.setattr(worker, "start", noting)
    scheduler, reply = Scheduler(worker, max_batches=2), queue.Queue[Any]()
    asked = [query("why? " * count, 4) for count in range(8, 0, -1)]
    for one in asked:
        scheduler.submit(identities(worker), one, reply.put)
    scheduler.submit(identities(worker), query("Which?"), reply.put, ["red", "blue"])
    gated.set()
    ends = [received(reply)[1] for _ in range(9)]
    scheduler.close()
    assert all(isinstance(end, Ended) for end in ends)
    assert max(at_once) == 2
    assert texts == [one.turns[0] for one in asked]


def test_a_choice_feeds_no_more_rows_than_allowed(worker: QueryWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, run, chosen = list[int](), Continuation._hidden, queue.Queue[Any]()

    def counting(self: Continuation, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(ids))
        return run(self, ids, *rest)

    monkeypatch.setattr(Continuation, "_hidden", counting)
    scheduler = Scheduler(worker, max_rows=2)
    scheduler.submit(identities(worker), query("Which?"), chosen.put, [f"option {number}" for number in range(8)])
    assert isinstance(received(chosen)[1], Ended)
    scheduler.close()
    assert max(rows) == 2


def test_questions_given_up_leave_their_places_while_a_load_hangs(worker: QueryWorker, gated: threading.Event) -> None:
    scheduler, reply = Scheduler(worker, max_waiting=2), queue.Queue[Any]()
    requests = [scheduler.submit(identities(worker), query("What?"), reply.put) for _ in range(2)]
    while len(scheduler._queue) < 2:
        time.sleep(0.01)
    time.sleep(0.05)  # the answer thread now waits for the load
    for request in requests:
        request.cancel()
    until = time.monotonic() + 10
    while scheduler.waiting and time.monotonic() < until:
        time.sleep(0.01)
    scheduler.submit(identities(worker), query("Why?"), reply.put)
    gated.set()
    assert isinstance(received(reply)[1], Ended)
    scheduler.close()
    assert reply.empty()


def test_a_choice_takes_turns_and_can_be_given_up(
    worker: QueryWorker, gated: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While long options are scored, other answers go on, and the service can end."""
    monkeypatch.setattr(answer, "_TOKENS_AT_ONCE", 8)
    choosing, turns = worker.choosing, 0

    def counting(*args: Any) -> Any:
        nonlocal turns
        pieces = choosing(*args)
        while True:
            try:
                yield next(pieces)
            except StopIteration as end:
                return end.value
            turns += 1

    monkeypatch.setattr(worker, "choosing", counting)
    scheduler, chosen, other = Scheduler(worker), queue.Queue[Any](), queue.Queue[Any]()
    long = scheduler.submit(identities(worker), query("Which?"), chosen.put, ["red " * 300, "blue"])

    def on_event(event: Any) -> None:
        other.put(event)
        if isinstance(event, Ended):
            long.cancel()

    scheduler.submit(identities(worker), query("What?"), on_event)
    gated.set()
    text, _ = received(other)
    assert received(chosen)[1].reason == "cut"
    scheduler.close()
    assert text == alone(worker, 0, query("What?"))
    assert 5 <= turns <= 7  # of about 150 steps


def test_options_without_hurry_are_chosen_as_the_worker_chooses(worker: QueryWorker) -> None:
    scheduler, chosen = Scheduler(worker), queue.Queue[Any]()
    options = ("red", "a much longer answer", "blue")
    scheduler.submit(identities(worker), query("Which?"), chosen.put, options)
    text, ended = received(chosen)
    scheduler.close()
    (choice,) = worker.choose(worker.load(*identities(worker)), [["Which?"]], [options])
    assert (text, ended.choice) == (options[choice.index], choice)
