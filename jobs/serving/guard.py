"""What every HTTP request passes first: size, time, key and rate limits, and headers that keep browsers strict.

A body is read whole, and bounded, before anything parses it. Keys are compared in constant time and never logged.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pydantic import Field

from sttm.settings import Settings

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_CLIENTS = 10_000  # remembered by the rate limit

Message = dict[str, Any]


class GuardConfig(Settings):
    """Limits of every request.

    Attributes:
        max_body_bytes: a longer body is refused unread.
        body_timeout_s: time to send it.
        requests_per_minute: of one key, or one address without keys; None does not limit.
    """

    max_body_bytes: int = Field(default=256 << 10, ge=1)
    body_timeout_s: float = Field(default=10.0, gt=0)
    requests_per_minute: int | None = Field(default=None, ge=1)


class Guard:
    """ASGI middleware.

    Args:
        app: what it protects.
        config: limits.
        keys: API keys; none lets everybody in.
        is_open: whether a path needs no key.
        heard: told the path and status of every response.
    """

    def __init__(
        self,
        app: Any,
        config: GuardConfig,
        keys: tuple[str, ...],
        is_open: Callable[[str], bool],
        heard: Callable[[str, int], None],
    ) -> None:
        self._app, self._config, self._is_open, self._heard = app, config, is_open, heard
        self._keys = tuple(_digest(key.encode()) for key in keys)
        self._rate = None if config.requests_per_minute is None else RateLimit(config.requests_per_minute)

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._heard(path, message["status"])
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        headers = dict(scope["headers"])
        refusal = None if self._is_open(path) else self._refusal(scope, headers)
        body = b""
        if refusal is None and scope["method"] not in ("GET", "HEAD"):
            refusal, body = await self._body(headers, receive)
        if refusal is not None:
            await _refuse(send_strictly, *refusal)
            return
        await self._app(scope, _replayed(body, receive), send_strictly)

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        client = (scope.get("client") or ("",))[0]
        if self._keys:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            digest = _digest(key.strip())
            known = [hmac.compare_digest(digest, other) for other in self._keys]
            if kind.lower() != b"bearer" or not any(known):
                return 401, "give a valid API key: Authorization: Bearer <key>", "invalid_api_key"
            client = digest.hex()
        if self._rate is not None and not self._rate.allows(client):
            return 429, f"over {self._config.requests_per_minute} requests a minute; slow down", "rate_limit_exceeded"
        return None

    async def _body(self, headers: dict[bytes, bytes], receive: Any) -> tuple[tuple[int, str, str] | None, bytes]:
        """The whole body, or why it is refused."""
        limit, data = self._config.max_body_bytes, b""
        too_large = (413, f"the body is over {limit} bytes", "body_too_large")
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            # A browser asks first before it sends JSON to another site, and is told no.
            return (415, "send Content-Type: application/json", "unsupported_content_type"), b""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            return too_large, b""
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while True:
                    message = await receive()
                    data += message.get("body", b"")
                    if len(data) > limit:
                        return too_large, b""
                    if not message.get("more_body"):
                        return None, data
        except TimeoutError:
            return (408, f"no body within {self._config.body_timeout_s} s", "request_timeout"), b""


class RateLimit:
    """A bucket of one minute's requests a client, refilled steadily."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Count one request; False if the client has none left."""
        now = time.monotonic()
        left, at = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        is_allowed = left >= 1
        self._buckets[client] = (left - is_allowed, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return is_allowed


def _digest(key: bytes) -> bytes:
    """Digests have one length, so that comparing them tells nothing of a key's."""
    return hashlib.sha256(key).digest()


def _replayed(body: bytes, receive: Any) -> Callable[[], Any]:
    """`receive` that gives the body that was read already, then what the server says (that the client has left)."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return parts.pop() if parts else await receive()

    return replay


async def _refuse(send: Any, status: int, message: str, code: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"5"))
    if status in (408, 413, 415):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
