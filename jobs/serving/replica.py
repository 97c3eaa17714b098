"""One replica of the service on Ray Serve: a model, the videos it has at hand, and a scheduler of its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ray import serve

from jobs.cluster.session import given_devices
from sttm.query.cache_tier import CacheConfig, CacheState
from sttm.query.scheduler import ScheduleConfig, Scheduler
from sttm.query.ticket import Ended, Piece
from sttm.query.worker import Query, QueryWorker


@dataclass(frozen=True)
class Report:
    """What a replica has at hand, by its name."""

    replica: str
    state: CacheState


Event = Piece | Ended | BaseException | Report


class Replica:
    """The class of the Ray Serve deployment; arguments as for `QueryWorker.open` and `Scheduler`."""

    def __init__(self, store: str, model: str | None, cache: CacheConfig, schedule: ScheduleConfig) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._worker = QueryWorker.open(store, model, given_devices(), cache)
        self._scheduler = Scheduler(self._worker, schedule)

    async def answer(self, identity: str, query: Query, options: Sequence[str]) -> AsyncIterator[list[Event]]:
        """Events of one answer as `Scheduler.submit` tells them, those that are there together; a report is last.

        An exception is an event like others. Whoever leaves early cancels the question.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def hear(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            ticket = self._scheduler.submit(identity, query, hear, options)
        except Exception as error:
            yield [error]
            return
        try:
            is_over = False
            while not is_over:
                found = [await events.get()]
                while not events.empty():
                    found.append(events.get_nowait())
                is_over = not isinstance(found[-1], Piece)
                yield [*found, Report(self._name, self._worker.cache_state)] if is_over else found
        finally:
            ticket.cancel()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if not self._scheduler.is_alive:
            raise RuntimeError("the thread that answers has ended")

    def ready(self) -> bool:
        """Returns once the model is loaded."""
        return True
