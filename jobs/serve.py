"""Serve a store over HTTP: an OpenAI-compatible API and a small web page.

    python -m jobs.serve --store /data/store                     # http://127.0.0.1:8000, for this machine only
    STTM_API_KEYS=key1,key2 python -m jobs.serve --store s3://bucket/store --host 0.0.0.0 --set cache.disk=/data/cache
    python -m jobs.serve --store s3://bucket/store --set serve.replicas=8   # on Ray Serve, a GPU for each replica

One process answers with one model. With `serve.replicas` several processes answer, and each video is asked about at
one of them. Everything that the API and the page show is of one recipe, the newest unless --recipe names another.
Settings are those of the sections `serve`, `cache`, `run.gpus_per_model` and `model.path`.

SIGTERM and Ctrl-C refuse new connections and let requests under way finish, for at most `serve.drain_s` seconds.
"""

import ipaddress
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.command import AddressOption, OptionalConfigOption, RecipeOption, SetOption, StoreOption, run
from jobs.config import JobConfig
from sttm.config import load_config
from sttm.errors import ConfigError
from sttm.models.placement import first_gpus
from sttm.query.checkpoint import newest_checkpoint
from sttm.query.scheduler import Scheduler
from sttm.query.worker import QueryWorker
from sttm.store.recipes import choose_recipe
from sttm.store.store import Store

if TYPE_CHECKING:
    from jobs.serving.answerer import Answerer
KEYS = "STTM_API_KEYS"
_MAX_CONNECTIONS = 1024


def serve(
    store: StoreOption,
    host: Annotated[
        str, typer.Option(help="address to listen on; an address that other machines reach needs API keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    address: AddressOption = None,
    recipe: RecipeOption = None,
    config: OptionalConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Answer questions about stored videos over HTTP."""
    settings = load_config(JobConfig, config, set_)
    keys = tuple(filter(None, (key.strip() for key in os.environ.get(KEYS, "").split(","))))
    if not keys and not _is_loopback(host):
        raise ConfigError(f"--host {host} can be reached from elsewhere: set API keys in ${KEYS} (comma-separated)")
    _require_free(host, port)
    opened = Store.open(store)
    chosen = choose_recipe(opened, recipe)
    checkpoint = newest_checkpoint(opened, settings.model.path, chosen.digest)
    try:
        from jobs.serving.app import create_app
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'sttm[serve]'") from None
    os.environ.pop(KEYS, None)  # Processes that this one starts do not need the keys.
    for line in filter(None, (chosen.notice, checkpoint.notice, f"loading the model {checkpoint.name}")):
        print(line, flush=True)
    answerer = _answerer(store, chosen.digest, address, settings)
    print(f"serving {opened.storage.url} with {checkpoint.name} on {url_of(host, port)}", flush=True)
    name = checkpoint.name.rstrip("/").rsplit("/", 1)[-1]
    app = create_app(opened, name, answerer, settings.serve, keys, chosen.digest, checkpoint.notice)
    listen(app, host, port, settings.serve.drain_s, is_private=not keys)
    return 0


def _answerer(store: str, recipe_digest: str, address: str | None, settings: JobConfig) -> "Answerer":
    """A scheduler in this process, or replicas on Ray Serve."""
    limits, model, gpus = settings.serve, settings.model.path, settings.run.gpus_per_model
    if limits.replicas == 1 and address is None:
        started_at = time.perf_counter()
        worker = QueryWorker.open(store, model, first_gpus(gpus), settings.cache, recipe_digest)
        print(f"model loaded in {time.perf_counter() - started_at:.1f} s", flush=True)
        return Scheduler(worker, limits.max_rows, limits.max_waiting)
    try:
        from jobs.serving.replica import ReplicaSettings
        from jobs.serving.replicas import Replicas
    except ImportError as error:
        raise ConfigError(f"{error}; serve.replicas needs: pip install 'sttm[serve]'") from None
    each = ReplicaSettings(store, model, recipe_digest, settings.cache, limits.max_rows, limits.max_waiting)
    started = Replicas(each, limits.replicas, gpus, address, limits.drain_s)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's own handler would abort; the server sets its own.
    return started


def listen(app: Any, host: str, port: int, drain_s: int, is_private: bool) -> None:
    """Run the server until SIGTERM or SIGINT, then let requests under way finish.

    Args:
        app: the ASGI application.
        host: address to listen on.
        port: port to listen on.
        drain_s: seconds that requests under way get to finish.
        is_private: whether only requests to this machine's own names are let in.
    """
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from jobs.serving.connection import Connection

    if is_private:  # A foreign web page must not reach the service through a host name that resolves to this machine.
        app = TrustedHostMiddleware(app, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host])
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=drain_s,
        ws="none",
        lifespan="on",
    )
    uvicorn.Server(config).run()  # `uvicorn.run` would hide that Ctrl-C ended it


def url_of(host: str, port: int) -> str:
    """The URL of a server that listens on a host name, an IPv4 address or an IPv6 address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _require_free(host: str, port: int) -> None:
    """Check that the address can be listened on, before a model is loaded, which can take minutes."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        cause = (
            os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        )  # negative: an unknown host
        raise ConfigError(f"cannot listen on {url_of(host, port)}: {cause}; choose another --host or --port") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def command() -> None:
    """Entry point."""
    run(__doc__, serve=serve)


if __name__ == "__main__":
    command()
