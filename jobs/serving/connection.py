"""A client's connection that is closed if no request arrives over it.

uvicorn by itself waits for ever for the first request of a connection, and for the rest of any request that has begun.
Silent connections, which need no API key, could therefore take all places of the service.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = AutoHTTPProtocol


class Connection(_Protocol):
    """A protocol for the `http` argument of uvicorn's `Config`.

    It closes the connection if the headers of a request have not arrived whole after `timeout_keep_alive` seconds.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._patience = self._wait()

    def on_response_complete(self) -> None:
        """Start to wait for the next request."""
        super().on_response_complete()
        self._patience.cancel()
        self._patience = self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._patience.cancel()
        super().connection_lost(exc)

    def _wait(self) -> asyncio.TimerHandle:
        timer: asyncio.TimerHandle = self.loop.call_later(self.timeout_keep_alive, self._close_if_silent)
        return timer

    def _close_if_silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # the same test as in uvicorn's `shutdown`
            self.transport.close()
