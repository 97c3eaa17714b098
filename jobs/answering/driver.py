"""The answer job on Ray: chunks of questions, each about one video, handed to one actor a GPU.

An actor goes on with the video it has loaded as long as there are questions about it. Ray retries nothing; the driver
sorts the faults: a crash halves the chunk until one question is left, which is then tried alone and becomes an error
row; a lost node or an unreachable store costs no question a try of its own.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import Field
from ray import exceptions as ray_errors

from jobs.answering.actor import AnswerActor, AnswerConfig, Asked
from jobs.answering.answer_table import AnswerRow
from jobs.cluster.actor_pool import ActorPool, Worker, places_for
from jobs.cluster.faults import cause_of, first_line, is_lost
from sttm.settings import Settings

_IN_FLIGHT = 2  # chunks an actor holds: one it answers, and the next


class AnswerRunConfig(Settings):
    """How the job runs; nothing here changes an answer.

    Attributes:
        gpus: how many to use, those not there yet included; default those the cluster has when the job starts.
        workers: actors; default as many as the GPUs hold, or one on the CPU.
        gpus_per_model: GPUs of one actor; ignored where the cluster has none.
        chunk_rows: questions handed out at once.
        batch_rows: questions answered at once.
        timeout_s: a chunk that takes longer counts as a crash.
        device_bytes: memory of each actor for videos.
        crash_tries: how often one question may kill its process before it becomes an error row.
        video_crashes: how often all questions about one video may.
        lost_tries: how often a chunk is tried again after something else than itself failed.
    """

    gpus: int | None = Field(default=None, ge=0)
    workers: int | None = Field(default=None, ge=1)
    gpus_per_model: int = Field(default=1, ge=1)
    chunk_rows: int = Field(default=256, ge=1)
    batch_rows: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=900.0, gt=0)
    device_bytes: int = Field(default=8 << 30, ge=0)
    crash_tries: int = Field(default=3, ge=1)
    video_crashes: int = Field(default=16, ge=1)
    lost_tries: int = Field(default=8, ge=1)


@dataclass(eq=False)
class _Chunk:
    asked: list[Asked]
    crashes: int = 0
    losses: int = 0
    not_before: float = 0.0

    @property
    def identity(self) -> str:
        return self.asked[0].identity


class AnswerDriver:
    """Answers questions; tells `hear` the rows of each chunk as they come.

    Args:
        store_url, identity, model, config, run_id: as for `AnswerActor`.
        run: how the job runs.
        hear: takes finished rows; called at least every half second, with none too.

    Attributes:
        stopping: set it, and what runs is finished and nothing begun.
    """

    def __init__(
        self,
        store_url: str,
        identity: str,
        model: str | None,
        config: AnswerConfig,
        run: AnswerRunConfig,
        run_id: str,
        hear: Callable[[list[AnswerRow]], None],
    ) -> None:
        self.stopping = threading.Event()
        self._args = (store_url, identity, model, config, run_id)
        self._run, self._run_id, self._hear = run, run_id, hear
        self._waiting: dict[str, deque[_Chunk]] = {}
        self._pool: ActorPool[_Chunk]
        self._crashes: dict[str, int] = {}

    def run(self, asked: Iterable[Asked]) -> None:
        """Answer all, or until `stopping` is set.

        Raises:
            ConfigError: there are GPUs, but fewer than one actor needs.
            StartError: no actor can start.
        """
        by_video: dict[str, list[Asked]] = {}
        for one in asked:
            by_video.setdefault(one.identity, []).append(one)
        for identity, group in sorted(by_video.items(), key=lambda item: -len(item[1])):
            size = self._run.chunk_rows
            chunks = deque(_Chunk(group[at : at + size]) for at in range(0, len(group), size))
            self._waiting[identity] = chunks
        chunks_in_all = sum(map(len, self._waiting.values()))
        places, gpus = places_for(chunks_in_all, self._run.gpus, self._run.gpus_per_model, "--gpus")
        limits = (self._run.batch_rows, self._run.timeout_s, self._run.device_bytes)
        places = min(self._run.workers or places, chunks_in_all)
        self._pool = ActorPool(AnswerActor, (*self._args, *limits), places, gpus, _IN_FLIGHT)
        while self._pool.is_busy or (self._waiting and not self.stopping.is_set()):
            self._hand_out()
            self._hear([])
            self._collect()

    def _hand_out(self) -> None:
        for worker in self._pool.workers:
            while worker.is_ready and len(worker.running) < _IN_FLIGHT and not self.stopping.is_set():
                chunk = self._take_for(worker)
                if chunk is None:
                    break
                worker.running[worker.actor.answer.remote(chunk.asked)] = chunk

    def _take_for(self, worker: Worker[_Chunk]) -> _Chunk | None:
        """The next chunk: about a video this worker has, else about one that nobody has, else any."""
        if any(chunk.crashes for chunk in worker.running.values()):
            return None  # a suspect runs alone
        mine = {chunk.identity for chunk in worker.running.values()}
        taken = {chunk.identity for w in self._pool.workers for chunk in w.running.values()}
        untouched = (identity for identity in self._waiting if identity not in taken)
        now = time.monotonic()
        for identity in itertools.chain(mine, untouched, self._waiting):
            chunks = self._waiting.get(identity, ())
            due = (chunk for chunk in chunks if chunk.not_before <= now and worker.takes(chunk, _IN_FLIGHT))
            if chunk := next(due, None):
                self._waiting[identity].remove(chunk)
                if not self._waiting[identity]:
                    del self._waiting[identity]
                return chunk
        return None

    def _collect(self) -> None:
        """Wait for something to end, and deal with it."""
        waiting = self._pool.references()
        if not waiting:
            time.sleep(0.05)
            return
        for done in ray.wait(waiting, num_returns=1, timeout=0.5)[0]:
            if ended := self._pool.end(done):
                self._end_chunk(*ended, done)

    def _end_chunk(self, worker: Worker[_Chunk], chunk: _Chunk, done: Any) -> None:
        try:
            self._hear(ray.get(done))
        except Exception as error:  # the boundary where a chunk's fault becomes rows
            self._failed(chunk, error)
            if isinstance(error, ray_errors.RayActorError):
                for held in self._pool.replace(worker).values():  # which of two crashed nobody knows
                    self._put_back(held)

    def _put_back(self, chunk: _Chunk) -> None:
        self._waiting.setdefault(chunk.identity, deque()).append(chunk)

    def _failed(self, chunk: _Chunk, error: Exception) -> None:
        cause = cause_of(error)
        was_lost = is_lost(cause)
        if was_lost:
            chunk.losses += 1
        else:
            chunk.crashes += 1
            self._crashes[chunk.identity] = self._crashes.get(chunk.identity, 0) + 1
        if chunk.losses >= self._run.lost_tries:
            self._give_up(chunk, "lost", chunk.losses, cause)
        elif not was_lost and self._crashes[chunk.identity] >= self._run.video_crashes:
            self._give_up(chunk, "crashed", self._crashes[chunk.identity], cause)
        elif not was_lost and len(chunk.asked) == 1 and chunk.crashes >= self._run.crash_tries:
            self._give_up(chunk, "crashed", chunk.crashes, cause)
        else:
            chunk.not_before = time.monotonic() + min(30.0, 0.5 * 2 ** min(chunk.crashes + chunk.losses, 8))
            halves = [chunk] if was_lost or len(chunk.asked) == 1 else _halves(chunk)
            for part in halves:
                self._put_back(part)

    def _give_up(self, chunk: _Chunk, code: str, tries: int, cause: BaseException) -> None:
        message = f"{code} {tries} times, last: {type(cause).__name__}: {first_line(cause)}"
        self._hear([one.error(code, message, self._run_id) for one in chunk.asked])


def _halves(chunk: _Chunk) -> list[_Chunk]:
    """Both remember the crash only as suspects: each is again tried from the start, alone."""
    middle = len(chunk.asked) // 2
    parts = (chunk.asked[:middle], chunk.asked[middle:])
    return [_Chunk(part, crashes=1, losses=chunk.losses, not_before=chunk.not_before) for part in parts]
