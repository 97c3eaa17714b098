"""The checks that every HTTP request passes first: body size, body time, API key and rate.

The guard also adds headers that keep browsers from running or embedding anything foreign. It reads the whole body, up
to a limit, before anything parses it. It compares keys in constant time and never logs them.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

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
_MAX_BODY_BYTES, _BODY_TIMEOUT_S = 256 << 10, 10.0
_CLIENTS = 10_000  # clients that the rate limit remembers

Message = dict[str, Any]


class Guard:
    """ASGI middleware that refuses requests before the application sees them.

    Args:
        app: the ASGI application that the guard protects.
        keys: API keys. Without any, every request is let in.
        is_open: whether a path can be requested without a key.
        on_response: called with the path and the status of every response.
        requests_per_minute: requests that one key, or one address where there are no keys, may send a minute. None
            sets no limit.
        max_body_bytes: size of the longest body; a longer one is refused before it is read whole.
        body_timeout_s: seconds that a client gets to send its body.
    """

    def __init__(
        self,
        app: Any,
        keys: tuple[str, ...],
        is_open: Callable[[str], bool],
        on_response: Callable[[str, int], None],
        requests_per_minute: int | None = None,
        max_body_bytes: int = _MAX_BODY_BYTES,
        body_timeout_s: float = _BODY_TIMEOUT_S,
    ) -> None:
        self._app, self._is_open, self._on_response = app, is_open, on_response
        self._requests_per_minute, self._max_body_bytes = requests_per_minute, max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._keys = tuple(_digest(key.encode()) for key in keys)
        self._rate = None if requests_per_minute is None else RateLimit(requests_per_minute)

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._on_response(path, message["status"])
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
            return 429, f"over {self._requests_per_minute} requests a minute; slow down", "rate_limit_exceeded"
        return None

    async def _body(self, headers: dict[bytes, bytes], receive: Any) -> tuple[tuple[int, str, str] | None, bytes]:
        """Why the body is refused, as status, message and code, or None; and the whole body."""
        limit, data = self._max_body_bytes, b""
        too_large = (413, f"the body is over {limit} bytes", "body_too_large")
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            # A browser sends JSON to another site only after asking that site, and this service never agrees.
            return (415, "send Content-Type: application/json", "unsupported_content_type"), b""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            return too_large, b""
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    data += message.get("body", b"")
                    if len(data) > limit:
                        return too_large, b""
                    if not message.get("more_body"):
                        return None, data
        except TimeoutError:
            return (408, f"no body within {self._body_timeout_s} s", "request_timeout"), b""


class RateLimit:
    """Counts requests by client. Each client has a bucket of one minute's requests that refills steadily."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Count one request. Returns False if the client's bucket is empty."""
        now = time.monotonic()
        left, at = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - at) * self._per_minute / 60)
        is_allowed = left >= 1
        self._buckets[client] = (left - is_allowed, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return is_allowed


def _digest(key: bytes) -> bytes:
    """The sha256 of a key. All digests have one length, so comparing them does not reveal the length of a key."""
    return hashlib.sha256(key).digest()


def _replayed(body: bytes, receive: Any) -> Callable[[], Any]:
    """A `receive` that returns the body that was read already, and then what the server sends, such as a disconnect."""
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
        headers.append((b"connection", b"close"))  # because the rest of the body stays unread
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
