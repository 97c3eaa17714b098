"""One replica of the service on Ray Serve: a process with a model, its kept videos and a scheduler."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ray import serve

from jobs.cluster.session import given_devices
from sttm.query.cache_tier import CacheConfig, CacheState, Identities
from sttm.query.question import Query
from sttm.query.request import Event, Piece
from sttm.query.scheduler import Scheduler
from sttm.query.worker import QueryWorker


@dataclass(frozen=True)
class Report:
    """The state of one replica's caches.

    Attributes:
        replica: the name that Ray Serve gave the replica.
        state: the state of its caches.
    """

    replica: str
    state: CacheState


@dataclass(frozen=True)
class ReplicaSettings:
    """What each replica is started with.

    Attributes:
        store: URL of the store.
        model: folder or Hugging Face id of the checkpoint; None takes the one that made the newest artifact.
        recipe_digest: the recipe whose newest artifact names the model.
        cache: memory and disk for videos that are kept for later questions.
        max_rows: questions, or options of one question, that the replica computes at a time.
        max_waiting: questions that the replica accepts before it can begin them.
    """

    store: str
    model: str | None
    recipe_digest: str | None
    cache: CacheConfig
    max_rows: int
    max_waiting: int

    @property
    def max_questions(self) -> int:
        """Questions that the replica holds at a time."""
        return self.max_rows + self.max_waiting


class Replica:
    """The class that Ray Serve deploys."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._worker = QueryWorker.open(
            settings.store, settings.model, given_devices(), settings.cache, settings.recipe_digest
        )
        self._scheduler = Scheduler(self._worker, settings.max_rows, settings.max_waiting)

    async def answer(
        self, identities: Identities, query: Query, options: Sequence[str]
    ) -> AsyncIterator[list[Event | Report]]:
        """Events of one answer, in lists of those that are known at the same time. A report follows the last event.

        An exception is yielded, not raised. Closing the iterator early cancels the question.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def on_event(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            request = self._scheduler.submit(identities, query, on_event, options)
        except Exception as error:
            yield [error]
            return
        try:
            is_over = False
            while not is_over:
                found: list[Event | Report] = [await events.get()]
                while not events.empty():
                    found.append(events.get_nowait())
                is_over = not isinstance(found[-1], Piece)
                yield [*found, Report(self._name, self._worker.cache_state)] if is_over else found
        finally:
            request.cancel()

    def check_health(self) -> None:
        """Raise if questions are not answered any more. Ray Serve calls this and replaces a replica that raises."""
        if not self._scheduler.is_alive:
            raise RuntimeError("the thread that answers has ended")

    def ready(self) -> bool:
        """Returns once the model is loaded."""
        return True
