"""The answer job on Ray: questions about one video form chunks, and chunks are handed to one actor per GPU.

An actor keeps getting chunks about the video that it has loaded while there are any. Ray itself retries nothing:
`jobs/cluster/retry.py` decides about every fault. A chunk that crashes its process is halved until the question that
crashes stands alone; that question becomes an error row.
"""

import itertools
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from ray import exceptions as ray_errors

from jobs.answering.actor import AnswerActor
from jobs.answering.answer_table import AnswerRow
from jobs.answering.question_task import QuestionTask
from jobs.answering.settings import AnswerSections
from jobs.cluster.actor_pool import ActorPool, RayActors, Worker, places_for
from jobs.cluster.calls import Calls
from jobs.cluster.faults import FaultKind, fault_of
from jobs.cluster.retry import EndRun, GiveUp, RetryLimits, Tries, TryAgain, what_next
from sttm.urls import redact_url

CHUNK_ROWS = 256  # questions handed to an actor at a time
CHUNKS_PER_ACTOR = 2  # one is answered while the video of the next one is loaded
CRASHES_PER_VIDEO = 16  # crashes after which all questions about one video become error rows


@dataclass(eq=False)
class _Chunk:
    """Questions about one artifact."""

    tasks: list[QuestionTask]
    tries: Tries = field(default_factory=Tries)

    @property
    def identity(self) -> str:
        return self.tasks[0].identity

    @property
    def crashes(self) -> int:
        return self.tries.crashes


class AnswerDriver:
    """Hands out questions and passes on the rows that come back.

    Args:
        store_url: URL of the store.
        identity: an artifact with a readable manifest, which names the model to load.
        settings: the settings of the job.
        run_id: the run that the rows are attributed to.
        on_rows: is called with the rows of each finished chunk, and at least twice a second, if only with no rows.

    Attributes:
        stopping: an event. Once it is set, no chunk is handed out any more and `run` returns after those under way.
    """

    def __init__(
        self,
        store_url: str,
        identity: str,
        settings: AnswerSections,
        run_id: str,
        on_rows: Callable[[list[AnswerRow]], None],
    ) -> None:
        self.stopping = threading.Event()
        self._actor_args = (store_url, identity, settings, run_id)
        self._run, self._workers = settings.run, settings.answer.workers
        self._limits = RetryLimits(settings.run.crash_tries, settings.run.lost_tries, CRASHES_PER_VIDEO)
        self._run_id, self._on_rows = run_id, on_rows
        # A plain dict whose first entries were deleted is slow to find the first one that is left.
        self._waiting: OrderedDict[str, deque[_Chunk]] = OrderedDict()
        self._crashes: Counter[str] = Counter()
        self._calls = Calls()
        self._pool: ActorPool[_Chunk]

    def run(self, tasks: Iterable[QuestionTask]) -> None:
        """Answer all questions, or as many as there is time for until `stopping` is set.

        Raises:
            ConfigError: there are GPUs, but fewer than one actor needs.
            StartError: no actor can start.
        """
        by_video: dict[str, list[QuestionTask]] = {}
        for task in tasks:
            by_video.setdefault(task.identity, []).append(task)
        for identity, group in sorted(by_video.items(), key=lambda item: -len(item[1])):
            starts = range(0, len(group), CHUNK_ROWS)
            self._waiting[identity] = deque(_Chunk(group[start : start + CHUNK_ROWS]) for start in starts)
        self._pool = self._start_actors(sum(map(len, self._waiting.values())))
        started, is_ready = time.monotonic(), False
        while self._pool.is_busy or (self._waiting and not self.stopping.is_set()):
            self._pool.start_due()
            self._hand_out()
            self._on_rows([])
            self._calls.collect(timeout_s=0.5)
            if not is_ready and any(worker.is_ready for worker in self._pool.workers):
                is_ready = True
                print(f"model loaded after {time.monotonic() - started:.1f} s; answering", flush=True)

    def _start_actors(self, chunks: int) -> ActorPool[_Chunk]:
        places, gpus = places_for(chunks, self._run.gpus, self._run.gpus_per_model, "--set run.gpus")
        places = min(self._workers or places, chunks)
        device = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "the CPU"
        copies = "one copy" if places == 1 else f"{places} copies, each"
        print(f"loading the language model: {copies} on {device}", flush=True)
        return ActorPool(self._calls, RayActors(AnswerActor, self._actor_args, gpus, CHUNKS_PER_ACTOR), places)

    def _hand_out(self) -> None:
        for worker in self._pool.workers:
            while worker.is_ready and len(worker.running) < CHUNKS_PER_ACTOR and not self.stopping.is_set():
                chunk = self._take_for(worker)
                if chunk is None:
                    break
                self._pool.run(worker, worker.actor.answer.remote(chunk.tasks).future(), chunk, self._end_chunk)

    def _take_for(self, worker: Worker[_Chunk]) -> _Chunk | None:
        """The next chunk for an actor: about a video that it has, else about one that no actor has, else any."""
        if any(chunk.crashes for chunk in worker.running.values()):
            return None  # a suspect runs alone
        own = {chunk.identity for chunk in worker.running.values()}
        taken = {chunk.identity for other in self._pool.workers for chunk in other.running.values()}
        untouched = (identity for identity in self._waiting if identity not in taken)
        now = time.monotonic()
        for identity in itertools.chain(own, untouched, self._waiting):
            chunks = self._waiting.get(identity, ())
            due = (c for c in chunks if c.tries.not_before <= now and worker.takes(c, CHUNKS_PER_ACTOR))
            if chunk := next(due, None):
                self._waiting[identity].remove(chunk)
                if not self._waiting[identity]:
                    del self._waiting[identity]
                return chunk
        return None

    def _end_chunk(self, worker: Worker[_Chunk], chunk: _Chunk, call: "Future[list[AnswerRow]]") -> None:
        try:
            self._on_rows(call.result())
        except Exception as error:  # the boundary where a chunk's fault becomes rows
            if isinstance(error, ray_errors.RayActorError) and self._pool.replace(worker, error) is not error:
                # Another chunk in this process may be the one that crashed it: this one is tried again without blame.
                self._put_back(chunk)
            else:
                self._failed(chunk, error)

    def _put_back(self, chunk: _Chunk) -> None:
        self._waiting.setdefault(chunk.identity, deque()).append(chunk)

    def _failed(self, chunk: _Chunk, error: Exception) -> None:
        fault, video = fault_of(error), chunk.tasks[0].question.video
        self._crashes[chunk.identity] += fault.kind is FaultKind.CRASH
        following = what_next(
            fault,
            chunk.tries,
            self._limits,
            time.monotonic(),
            name=video,
            size=len(chunk.tasks),
            crashes_of_group=self._crashes[chunk.identity],
        )
        match following:
            case GiveUp(code, message):
                message = message.replace(video, redact_url(video))
                self._on_rows([task.error_row(code, message, self._run_id) for task in chunk.tasks])
            case EndRun(cause):
                raise cause
            case TryAgain(tries, in_halves):
                middle = len(chunk.tasks) // 2 if in_halves else len(chunk.tasks)
                for part in (chunk.tasks[:middle], chunk.tasks[middle:]):
                    if part:
                        self._put_back(_Chunk(part, tries))
