"""The answer job on Ray: chunks of questions, each about one video, handed to one actor a GPU.

An actor goes on with the video it has loaded as long as there are questions about it. Ray retries nothing; the driver
sorts the faults: a crash halves the chunk until one question is left, which is then tried alone and becomes an error
row; a lost node or an unreachable store costs no question a try of its own.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from pydantic import Field
from ray import exceptions as ray_errors

from jobs.answer_actor import AnswerActor, AnswerConfig, Asked
from jobs.faults import LOST, cause_of, first_line
from sttm.errors import SttmError
from sttm.settings import Settings
from sttm.store.answer_table import AnswerRow


class AnswerRunConfig(Settings):
    """How the job runs; nothing here changes an answer.

    Attributes:
        workers: actors; default one a GPU of the cluster, or one on the CPU.
        chunk_rows: questions handed out at once.
        batch_rows: questions answered at once.
        timeout_s: a chunk that takes longer counts as a crash.
        device_bytes: memory of each actor for videos.
        crash_tries: how often one question may kill its process before it becomes an error row.
        video_crashes: how often all questions about one video may.
        lost_tries: how often a chunk is tried again after something else than itself failed.
    """

    workers: int | None = Field(default=None, ge=1)
    chunk_rows: int = Field(default=256, ge=1)
    batch_rows: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=900.0, gt=0)
    device_bytes: int = Field(default=8 << 30, ge=0)
    crash_tries: int = Field(default=3, ge=1)
    video_crashes: int = Field(default=16, ge=1)
    lost_tries: int = Field(default=8, ge=1)


class AnswerStartError(SttmError):
    """Actors die before they take their first question."""


@dataclass(eq=False)
class _Chunk:
    asked: list[Asked]
    crashes: int = 0
    losses: int = 0
    not_before: float = 0.0

    @property
    def identity(self) -> str:
        return self.asked[0].identity


@dataclass(eq=False)
class _Worker:
    actor: Any
    starting: Any
    is_ready: bool = False
    running: dict[Any, _Chunk] = field(default_factory=dict)

    def takes(self, chunk: _Chunk) -> bool:
        """A chunk that crashed a process runs alone."""
        return not self.running or not (chunk.crashes or any(c.crashes for c in self.running.values()))


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
        self._workers: list[_Worker] = []
        self._crashes: dict[str, int] = {}
        self._deaths_at_start = 0

    def run(self, asked: Iterable[Asked]) -> None:
        """Answer all, or until `stopping` is set.

        Raises:
            AnswerStartError: no actor can start.
        """
        by_video: dict[str, list[Asked]] = {}
        for one in asked:
            by_video.setdefault(one.identity, []).append(one)
        for identity, group in sorted(by_video.items(), key=lambda item: -len(item[1])):
            size = self._run.chunk_rows
            chunks = deque(_Chunk(group[at : at + size]) for at in range(0, len(group), size))
            self._waiting[identity] = chunks
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = min(self._run.workers or gpus or 1, sum(map(len, self._waiting.values())))
        self._resources = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        for _ in range(count):
            self._start_worker()
        while any(w.running for w in self._workers) or (self._waiting and not self.stopping.is_set()):
            self._hand_out()
            self._hear([])
            self._collect()

    def _start_worker(self) -> None:
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2, **self._resources}
        limits = (self._run.batch_rows, self._run.timeout_s, self._run.device_bytes)
        actor = ray.remote(**options)(AnswerActor).remote(*self._args, *limits)
        self._workers.append(_Worker(actor, actor.ready.remote()))

    def _hand_out(self) -> None:
        for worker in self._workers:
            while worker.is_ready and len(worker.running) < 2 and not self.stopping.is_set():
                chunk = self._take_for(worker)
                if chunk is None:
                    break
                worker.running[worker.actor.answer.remote(chunk.asked)] = chunk

    def _take_for(self, worker: _Worker) -> _Chunk | None:
        """The next chunk: about a video this worker has, else about one that nobody has, else any."""
        mine = {chunk.identity for chunk in worker.running.values()}
        taken = {chunk.identity for w in self._workers for chunk in w.running.values()}
        others = [next((i for i in self._waiting if i not in taken), None), next(iter(self._waiting), None)]
        for identity in (*mine, *others):
            chunks = self._waiting.get(identity or "")
            if chunks and chunks[0].not_before <= time.monotonic() and worker.takes(chunks[0]):
                chunk = chunks.popleft()
                if not chunks:
                    del self._waiting[chunk.identity]
                return chunk
        return None

    def _collect(self) -> None:
        """Wait for something to end, and deal with it."""
        refs = [ref for w in self._workers for ref in w.running]
        refs += [w.starting for w in self._workers if not w.is_ready]
        if not refs:
            time.sleep(0.05)
            return
        for done in ray.wait(refs, num_returns=1, timeout=0.5)[0]:
            worker = next(w for w in self._workers if done == w.starting or done in w.running)
            if done in worker.running:
                self._end_chunk(worker, done)
            else:
                self._end_start(worker)

    def _end_start(self, worker: _Worker) -> None:
        try:
            worker.is_ready = ray.get(worker.starting)
            self._deaths_at_start = 0
        except Exception as error:
            self._deaths_at_start += 1
            cause = cause_of(error)
            if isinstance(cause, SttmError) or self._deaths_at_start > 3 * len(self._workers):
                raise AnswerStartError(f"no answer actor can start: {first_line(cause)}") from error
            self._replace(worker)

    def _end_chunk(self, worker: _Worker, done: Any) -> None:
        chunk = worker.running.pop(done)
        try:
            self._hear(ray.get(done))
        except Exception as error:  # the boundary where a chunk's fault becomes rows
            self._failed(chunk, error)
            if isinstance(error, ray_errors.RayActorError) and worker in self._workers:
                self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        ray.kill(worker.actor)  # an unavailable actor may still hold its GPU
        for chunk in worker.running.values():  # which of two crashed nobody knows
            self._put_back(chunk)
        self._start_worker()

    def _put_back(self, chunk: _Chunk) -> None:
        self._waiting.setdefault(chunk.identity, deque()).append(chunk)

    def _failed(self, chunk: _Chunk, error: Exception) -> None:
        cause = cause_of(error)
        is_lost = isinstance(cause, LOST)
        if is_lost:
            chunk.losses += 1
        else:
            chunk.crashes += 1
            self._crashes[chunk.identity] = self._crashes.get(chunk.identity, 0) + 1
        if chunk.losses >= self._run.lost_tries:
            self._give_up(chunk, "lost", chunk.losses, cause)
        elif not is_lost and self._crashes[chunk.identity] >= self._run.video_crashes:
            self._give_up(chunk, "crashed", self._crashes[chunk.identity], cause)
        elif not is_lost and len(chunk.asked) == 1 and chunk.crashes >= self._run.crash_tries:
            self._give_up(chunk, "crashed", chunk.crashes, cause)
        else:
            chunk.not_before = time.monotonic() + min(30.0, 0.5 * 2 ** min(chunk.crashes + chunk.losses, 8))
            halves = [chunk] if is_lost or len(chunk.asked) == 1 else _halves(chunk)
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
