"""The HTTP service: OpenAI-compatible chat about stored videos, a search of the catalog, health, metrics, a page.

    POST /v1/chat/completions   GET /v1/models[/{id}]   GET /videos?q=   GET /videos/{id}   GET /videos/{id}/frames
    GET /healthz                GET /metrics            GET /            GET /page/{file}

A name that a request gives for a video is looked up in the catalog. It never becomes a path, a URL or a key.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from jobs.serving.answerer import Answerer
from jobs.serving.api_error import ApiError, api_error
from jobs.serving.chat_api import ChatRequest, Completion
from jobs.serving.frame_strip import frame_strip
from jobs.serving.guard import Guard
from jobs.serving.metrics import ServiceMetrics
from jobs.serving.reply import Reply
from jobs.serving.settings import ServeConfig
from sttm.errors import SttmError
from sttm.query.request import Ended, Piece
from sttm.store.catalog.frame_counts import frames_record
from sttm.store.catalog.lookup import UnknownVideoError
from sttm.store.catalog.row import CatalogRow
from sttm.store.catalog.view import CatalogView
from sttm.store.storage import public_url
from sttm.store.store import Store

_log = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
_ROUTES = ("/v1/chat/completions", "/v1/models", "/videos", "/healthz", "/metrics", "/page", "/")


def create_app(
    store: Store,
    model: str,
    answerer: Answerer,
    config: ServeConfig,
    keys: tuple[str, ...] = (),
    recipe_digest: str | None = None,
    notice: str = "",
) -> Any:
    """The ASGI application.

    Args:
        store: the store that holds the videos.
        model: the name of the one model in the API.
        answerer: answers the questions. It is closed when the application ends.
        config: limits.
        keys: API keys. Without any, every request is let in, which suits this machine only.
        recipe_digest: the recipe whose artifacts are served; None serves those of all recipes.
        notice: a sentence about the model that the page shows; empty for none.
    """
    service = Service(store, model, answerer, config, recipe_digest, notice)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(answerer.close)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    handlers: dict[str, Any] = {
        "/": service.page,
        "/page/{name}": service.page_file,
        "/healthz": service.healthz,
        "/metrics": service.metrics_text,
        "/v1/models": service.models,
        "/v1/models/{name:path}": service.model,
        "/videos": service.videos,
        "/videos/{video:path}/frames": service.frames,
        "/videos/{video:path}": service.video,
    }
    for path, handler in handlers.items():
        app.add_api_route(path, handler, methods=["GET"], response_model=None)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], response_model=None)
    app.add_exception_handler(Exception, _failed)
    for kind in (ApiError, SttmError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _failed)
    return Guard(app, keys, _is_open, service.count, config.requests_per_minute)


def _is_open(path: str) -> bool:
    """Whether a path needs no key: the health check, and the page, which asks its user for the key."""
    return path in ("/", "/healthz") or path.startswith("/page/")


class Service:
    """The handlers of all routes.

    Args:
        store: the store that holds the videos.
        model: the name of the one model in the API.
        answerer: answers the questions.
        config: limits.
        recipe_digest: the recipe whose artifacts are served; None serves those of all recipes.
        notice: a sentence about the model that the page shows; empty for none.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        answerer: Answerer,
        config: ServeConfig,
        recipe_digest: str | None = None,
        notice: str = "",
    ) -> None:
        self._store, self._model, self._answerer, self._config = store, model, answerer, config
        self._notice = notice
        self._catalog = CatalogView(store.storage, recipe_digest=recipe_digest)
        self._metrics = ServiceMetrics(answerer)
        self._decoding = asyncio.Semaphore(2)

    def count(self, path: str, status: int) -> None:
        """Count a response."""
        route = next((r for r in _ROUTES if path == r or (r != "/" and path.startswith(r + "/"))), "other")
        self._metrics.requests.labels(route, str(status)).inc()

    async def chat(self, request: Request) -> Response:
        """Answer a question about a video, or several, whole or streamed as server-sent events."""
        chat = ChatRequest.parse(await request.body())
        self._require_model(chat.model)
        query = chat.query(self._config.max_tokens, min(self._config.default_tokens, self._config.max_tokens))
        rows = [await self._find(name) for name in chat.video_names]
        videos = {row.identity: row.video_id for row in rows}
        options, timeout_s = chat.options or (), self._config.timeout_s
        reply = Reply(self._answerer, tuple(videos), query, options, self._metrics, timeout_s)
        completion = Completion(chat, self._model, videos)
        is_streaming = False
        try:
            event = await reply.next(request)  # an error before the first token sets the HTTP status
            if chat.stream:
                is_streaming = True
                stream = _stream(event, reply, completion)
                return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
            text = ""
            while isinstance(event, Piece):
                text, event = text + event.text, await reply.next(request)
            return JSONResponse(completion.whole(text, event))
        finally:
            if not is_streaming:
                reply.close()

    async def models(self) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._about_model()]})

    async def model(self, name: str) -> Response:
        """The one model, by its name."""
        self._require_model(name)
        return JSONResponse(self._about_model())

    async def videos(self, q: str = "", offset: int = 0, limit: int = 50) -> Response:
        """A page of the usable videos that have `q` in their id, name or URI, newest first."""
        if not (offset >= 0 and 1 <= limit <= 500 and len(q) <= 1000):
            raise ApiError(400, "offset from 0 on, limit from 1 to 500, q of at most 1000 characters", "bad_page")
        rows, total = await asyncio.to_thread(self._catalog.search, q, offset, limit)
        return JSONResponse({"object": "list", "total": total, "data": [_shown(row) for row in rows]})

    async def video(self, video: str) -> Response:
        """One video: its row, and the region of each token that was kept as (t, y0, x0, y1, x1, cells)."""
        return await asyncio.to_thread(self._about_video, await self._find(video))

    def _about_video(self, row: CatalogRow) -> Response:
        """The whole response, made in a thread: long videos have thousands of tokens, and streams must not wait."""
        found = self._store.load_survivors(row.identity)
        boxes = [[*box, patches] for box, patches in zip(found.boxes.tolist(), found.patches.tolist(), strict=True)]
        sampling = self._store.manifest(row.identity).facts.sampling
        about = {"grid": found.grid, "boxes": boxes, "seconds": sampling.seconds}
        return JSONResponse({**_shown(row), **about, "has_frames": self._config.shows_frames})

    async def frames(self, video: str) -> Response:
        """One JPEG of the sampled frames below each other, decoded now from the source."""
        if not self._config.shows_frames:
            raise ApiError(
                404, "this service does not decode sources; start it with --set serve.shows_frames=true", "no_frames"
            )
        row = await self._find(video)
        manifest = await asyncio.to_thread(self._store.manifest, row.identity)
        async with self._decoding:
            return Response(await frame_strip(manifest), media_type="image/jpeg")

    async def healthz(self) -> Response:
        """Status 200 if questions are being answered, else 503."""
        is_alive = await asyncio.to_thread(lambda: self._answerer.is_alive)
        return JSONResponse({"status": "ok" if is_alive else "not answering"}, 200 if is_alive else 503)

    async def metrics_text(self) -> Response:
        """The metrics in Prometheus' text format."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self) -> Response:
        """The web page."""
        return FileResponse(_PAGE / "index.html", media_type="text/html")

    async def page_file(self, name: str) -> Response:
        """A file that the web page needs."""
        if name not in _PAGE_FILES:
            raise ApiError(404, "no such file", "not_found")
        return FileResponse(_PAGE / name, media_type=_PAGE_FILES[name])

    def _require_model(self, name: str) -> None:
        if name != self._model:
            raise ApiError(404, f"no model {name[:100]!r}; this service has {self._model!r}", "model_not_found")

    def _about_model(self) -> dict[str, Any]:
        notice = {"notice": self._notice} if self._notice else {}
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "sttm", **notice}

    async def _find(self, video: str) -> CatalogRow:
        try:
            return await asyncio.to_thread(self._catalog.find, video)
        except UnknownVideoError as error:
            raise ApiError(404, str(error), "video_not_found") from None


async def _stream(event: Piece | Ended, reply: Reply, completion: Completion) -> AsyncIterator[bytes]:
    """Server-sent events. The server closes this iterator when the client has left."""
    try:
        yield _event(completion.first())
        while isinstance(event, Piece):
            yield _event(completion.piece(event.text))
            event = await reply.next()
        for chunk in completion.last(event):
            yield _event(chunk)
        yield b"data: [DONE]\n\n"
    except Exception as error:  # The status is sent already, so the error becomes an event.
        yield _event(_logged("a stream", error).body)
    finally:
        reply.close()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def _shown(row: CatalogRow) -> dict[str, Any]:
    """A catalog row as clients may see it."""
    names = ("identity", "tokens_before", "tokens_after", "kv_bytes", "created_at")
    about = {name: getattr(row, name) for name in names}
    about |= frames_record(row)
    return {"id": row.video_id, "object": "video", "name": row.name, "uri": public_url(row.uri), **about}


async def _failed(request: Request, error: Exception) -> Response:
    found = _logged(f"{request.method} {request.scope['path'][:200]}", error)
    headers = {"retry-after": "5"} if found.status in (429, 503) else None
    return JSONResponse(found.body, found.status, headers)


def _logged(where: str, error: Exception) -> ApiError:
    """The error as the client sees it. Logs it, if it hides something from the client or is a fault of the service."""
    found = api_error(error)
    if found.status >= 500 or found.code == "other_model":
        _log.error("%s: %s", where, error, exc_info=error if found.code == "internal" else None)
    return found
