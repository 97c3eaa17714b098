"""One answer as an asyncio handler waits for it: events in order, a deadline, and a client that may leave."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from starlette.requests import Request

from jobs.serving.answerer import Answerer
from jobs.serving.chat_api import ApiError
from jobs.serving.metrics import ServiceMetrics
from sttm.query.ticket import Ended, Piece
from sttm.query.worker import Query

_LOOK_EVERY_S = 0.25  # whether the client is still there


class Reply:
    """Submits a question and hears its answer in the running event loop.

    Args:
        answerer: answers; raises `BusyError` when too many wait.
        identity, query, options: as for `Scheduler.submit`.
        metrics: counts how it ended.
        timeout_s: from now to the end of the answer.
    """

    def __init__(
        self,
        answerer: Answerer,
        identity: str,
        query: Query,
        options: Sequence[str],
        metrics: ServiceMetrics,
        timeout_s: float,
    ) -> None:
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Piece | Ended | BaseException]()
        self._metrics, self._timeout_s, self._deadline = metrics, timeout_s, self._loop.time() + timeout_s
        self._is_over, self._look_at = False, 0.0
        self._ticket = answerer.submit(identity, query, self._hear, options)

    def close(self) -> None:
        """Nobody waits any more; an answer that has not ended is cut off."""
        if not self._is_over:
            self._metrics.answers.labels("cancelled").inc()
        self._is_over = True
        self._ticket.cancel()

    async def next(self, request: Request | None = None) -> Piece | Ended:
        """The next event.

        Args:
            request: looked at now and then, to see whether its client has left; not where the server does so itself.

        Raises:
            ApiError: 504 after the deadline, 499 when the client has left.
            Exception: what the scheduler reports.
        """
        while True:
            now = self._loop.time()
            if now >= self._deadline:
                self._over("timeout")
                raise ApiError(504, f"no answer within {self._timeout_s} s", "timeout")
            if request is not None and now >= self._look_at:
                self._look_at = now + _LOOK_EVERY_S
                if await request.is_disconnected():
                    raise ApiError(499, "the client has left", "client_left")
            with suppress(TimeoutError):
                event = await asyncio.wait_for(self._events.get(), min(_LOOK_EVERY_S, self._deadline - now))
                return self._heard(event)

    def _heard(self, event: Piece | Ended | BaseException) -> Piece | Ended:
        if isinstance(event, BaseException):
            self._over("error")
            raise event
        if isinstance(event, Ended):
            self._is_over = True
            self._metrics.ended(event)
        return event

    def _hear(self, event: Piece | Ended | BaseException) -> None:
        """Called from other threads."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _over(self, outcome: str) -> None:
        self._is_over = True
        self._metrics.answers.labels(outcome).inc()
