"""Which chunk of questions the driver gives an actor, and what becomes of a chunk that failed, without Ray."""

import time
from collections import deque
from types import SimpleNamespace

from jobs.answering.answer_table import AnswerRow
from jobs.answering.driver import CRASHES_PER_VIDEO, AnswerDriver, _Chunk
from jobs.answering.question_task import QuestionTask
from jobs.answering.questions import Question
from jobs.cluster.actor_pool import Worker
from jobs.cluster.retry import Tries
from jobs.config import JobConfig


def about(identity: str) -> QuestionTask:
    """A question about this artifact."""
    return QuestionTask(f"key of {identity}", Question("1", identity, "What?"), identity, identity)


def driver(rows: list[AnswerRow] | None = None) -> AnswerDriver:
    """A driver with a single idle actor; finished rows are added to `rows`."""
    made = AnswerDriver("store", "a", JobConfig(), "run", ([] if rows is None else rows).extend)
    made._pool = SimpleNamespace(workers=[Worker(0, is_ready=True)])  # type: ignore[assignment]
    return made


def test_an_idle_actor_is_given_what_is_due_though_another_video_backs_off() -> None:
    one = driver()
    backs_off = _Chunk([about("a")], Tries(losses=6, not_before=time.monotonic() + 30))
    due = [_Chunk([about(identity)]) for identity in "abc"]
    one._waiting = {"a": deque([backs_off, due[0]]), "b": deque([due[1]]), "c": deque([due[2]])}
    assert [one._take_for(one._pool.workers[0]) for _ in range(4)] == [*due, None]
    assert one._waiting == {"a": deque([backs_off])}


def test_a_busy_actor_is_given_no_suspect_but_what_waits_behind_it() -> None:
    one = driver()
    worker, suspect, innocent = one._pool.workers[0], _Chunk([about("a")], Tries(crashes=1)), _Chunk([about("b")])
    worker.running["call"] = _Chunk([about("z")])
    one._waiting = {"a": deque([suspect]), "b": deque([innocent])}
    assert [one._take_for(worker) for _ in range(2)] == [innocent, None]


def test_a_chunk_that_crashes_is_divided_and_a_lost_one_is_tried_again_whole() -> None:
    one, tasks = driver(), [about("a") for _ in range(3)]
    one._failed(_Chunk(tasks), RuntimeError("boom"))
    halves = one._waiting.pop("a")
    assert [(chunk.tasks, chunk.crashes) for chunk in halves] == [(tasks[:1], 1), (tasks[1:], 1)]
    one._failed(_Chunk(tasks), OSError("the bucket is away"))
    (whole,) = one._waiting.pop("a")
    assert (whole.tasks, whole.tries.losses, whole.crashes) == (tasks, 1, 0)


def test_questions_are_given_up_with_the_code_of_the_fault_and_no_password_in_the_message() -> None:
    rows: list[AnswerRow] = []
    one = driver(rows)
    task = QuestionTask("key", Question("7", "s3://me:secret@bucket/a.mp4", "What?"), "a", "a")
    one._failed(_Chunk([task], Tries(crashes=2)), RuntimeError("cannot parse s3://me:secret@bucket/a.mp4"))
    one._failed(_Chunk([about("b")], Tries(losses=7)), OSError("the bucket is away"))
    assert [(row.id, row.error_code) for row in rows] == [("7", "crashed"), ("1", "lost")]
    assert rows[0].error_message == (
        "s3://bucket/a.mp4 crashed 3 times, last: RuntimeError: cannot parse s3://bucket/a.mp4"
    )


def test_a_video_that_crashes_too_often_is_given_up_with_all_questions_of_the_chunk() -> None:
    rows: list[AnswerRow] = []
    one = driver(rows)
    for _ in range(CRASHES_PER_VIDEO):
        assert rows == []
        one._failed(_Chunk([about("a"), about("a")]), RuntimeError("boom"))
    assert [row.error_code for row in rows] == ["crashed", "crashed"]
