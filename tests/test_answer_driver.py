"""Which chunk of questions the answer job's driver gives an actor, without Ray."""

import time
from collections import deque
from types import SimpleNamespace

from jobs.answering.actor import AnswerConfig, Asked
from jobs.answering.driver import AnswerDriver, AnswerRunConfig, _Chunk
from jobs.answering.questions import AskedRow
from jobs.cluster.actor_pool import Worker


def asked(identity: str) -> Asked:
    """A question about this artifact."""
    return Asked(f"key of {identity}", AskedRow("1", identity, "What?"), identity, identity)


def driver() -> AnswerDriver:
    """One with a single idle actor, of which nothing is asked."""
    made = AnswerDriver("store", "a", None, AnswerConfig(), AnswerRunConfig(), "run", lambda rows: None)
    made._pool = SimpleNamespace(workers=[Worker(0, is_ready=True)])  # type: ignore[assignment]
    return made


def test_an_idle_actor_is_given_what_is_due_though_another_video_backs_off() -> None:
    one = driver()
    backs_off = _Chunk([asked("a")], losses=6, not_before=time.monotonic() + 30)
    due = [_Chunk([asked(identity)]) for identity in "abc"]
    one._waiting = {"a": deque([backs_off, due[0]]), "b": deque([due[1]]), "c": deque([due[2]])}
    assert [one._take_for(one._pool.workers[0]) for _ in range(4)] == [*due, None]
    assert one._waiting == {"a": deque([backs_off])}


def test_a_busy_actor_is_given_no_suspect_but_what_waits_behind_it() -> None:
    one = driver()
    worker, suspect, innocent = one._pool.workers[0], _Chunk([asked("a")], crashes=1), _Chunk([asked("b")])
    worker.running["call"] = _Chunk([asked("z")])
    one._waiting = {"a": deque([suspect]), "b": deque([innocent])}
    assert [one._take_for(worker) for _ in range(2)] == [innocent, None]
