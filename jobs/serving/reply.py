"""One answer, for an asyncio handler that waits for it: events in order, a deadline, a client that may leave."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from starlette.requests import Request

from jobs.serving.answerer import Answerer
from jobs.serving.api_error import ApiError
from jobs.serving.metrics import ServiceMetrics
from sttm.query.cache_tier import Identities
from sttm.query.question import Query
from sttm.query.request import Ended, Event, Piece

_LOOK_EVERY_S = 0.25  # pause between checks that the client is still there


class Reply:
    """Submits a question and receives the events of its answer in the running event loop.

    Args:
        answerer: answers the question.
        identities: the artifact that the question is about, or several that are shown one after the other.
        query: the turns, and how the answer is generated.
        options: answers of which the likeliest is chosen. None means that text is generated.
        metrics: counts how the answer ended.
        timeout_s: seconds from now to the end of the answer.

    Raises:
        BusyError: too many questions wait already, or the service is ending.
    """

    def __init__(
        self,
        answerer: Answerer,
        identities: Identities,
        query: Query,
        options: Sequence[str],
        metrics: ServiceMetrics,
        timeout_s: float,
    ) -> None:
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self._metrics, self._timeout_s, self._deadline = metrics, timeout_s, self._loop.time() + timeout_s
        self._is_over, self._look_at = False, 0.0
        self._request = answerer.submit(identities, query, self._on_event, options)

    def close(self) -> None:
        """Say that nobody waits any more. An answer that has not ended is cut off."""
        if not self._is_over:
            self._metrics.answers.labels("cancelled").inc()
        self._is_over = True
        self._request.cancel()

    async def next(self, request: Request | None = None) -> Piece | Ended:
        """The next event.

        Args:
            request: the HTTP request, to see whether its client has left. None where the server checks that itself,
                as it does while it streams.

        Raises:
            ApiError: with status 504 after the deadline, with 499 when the client has left.
            Exception: the exception that the answer ended with.
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
                return self._checked(event)

    def _checked(self, event: Event) -> Piece | Ended:
        if isinstance(event, BaseException):
            self._over("error")
            raise event
        if isinstance(event, Ended):
            self._is_over = True
            self._metrics.ended(event)
        return event

    def _on_event(self, event: Event) -> None:
        """Take an event. Other threads call this."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _over(self, outcome: str) -> None:
        self._is_over = True
        self._metrics.answers.labels(outcome).inc()
