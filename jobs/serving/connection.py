"""A client's connection, closed where no request comes over it.

uvicorn ends its wait for the next request with the first byte of it, and its wait for the first request never: silent
connections, which need no key, could take all places.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = AutoHTTPProtocol


class Connection(_Protocol):
    """Closes after uvicorn's `timeout_keep_alive` seconds without the whole headers of a request; the `http` of its
    `Config`."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._patience = self._wait()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._patience.cancel()
        self._patience = self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._patience.cancel()
        super().connection_lost(exc)

    def _wait(self) -> asyncio.TimerHandle:
        timer: asyncio.TimerHandle = self.loop.call_later(self.timeout_keep_alive, self._close_if_silent)
        return timer

    def _close_if_silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # as in uvicorn's `shutdown`
            self.transport.close()
