"""Serve a store over HTTP: an OpenAI-compatible API and a small web page.

    python -m jobs.serve --store /data/store                      # http://127.0.0.1:8000, this machine only
    STTM_API_KEYS=key1,key2 python -m jobs.serve --store s3://bucket/store --host 0.0.0.0 --disk-cache /data/cache
    python -m jobs.serve --store s3://bucket/store --replicas 8   # on Ray Serve, a GPU each; of $RAY_ADDRESS, or here

One process, one model, one device; with `--replicas` as many more, and each video at one of them. SIGTERM refuses new
connections, finishes what is under way (at most `--drain-s`), and ends with 143.
"""

import ipaddress
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.command import run
from sttm.errors import ConfigError
from sttm.models.placement import first_gpus
from sttm.query.cache_tier import CacheConfig
from sttm.query.checkpoint import newest_checkpoint
from sttm.query.scheduler import ScheduleConfig, Scheduler
from sttm.query.worker import QueryWorker
from sttm.store.store import Store

if TYPE_CHECKING:
    from jobs.serving.answerer import Answerer
KEYS = "STTM_API_KEYS"
_MAX_CONNECTIONS = 1024


def serve(
    store: Annotated[str, typer.Option(help="a store that jobs.index filled")],
    model: Annotated[str | None, typer.Option(help="checkpoint; default the one of the newest artifact")] = None,
    host: Annotated[str, typer.Option(help="address to listen on; others than this machine's need API keys")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    device_gb: Annotated[float, typer.Option(min=0, help="videos on the device")] = 8.0,
    host_gb: Annotated[
        float | None, typer.Option(min=0, help="videos in page-locked memory; default 16 on CUDA")
    ] = None,
    disk_cache: Annotated[Path | None, typer.Option(help="folder for copies of a remote store's caches")] = None,
    disk_gb: Annotated[float, typer.Option(min=0, help="what the copies of all replicas may take there")] = 64.0,
    max_rows: Annotated[int, typer.Option(min=1, help="questions answered at one time")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="questions waiting; more are refused")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer that may be asked for")] = 1024,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="longest time for an answer")] = 120.0,
    replicas: Annotated[int, typer.Option(min=1, help="processes that answer, on Ray Serve")] = 1,
    gpus_per_model: Annotated[int, typer.Option(min=1, help="GPUs a process spreads its model over")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="cluster for the replicas; default $RAY_ADDRESS")] = None,
    drain_s: Annotated[int, typer.Option(min=0, help="time to finish after SIGTERM")] = 60,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="of one API key (or address)")] = None,
    frames: Annotated[bool, typer.Option("--frames", help="decode sources on demand to show them on the page")] = False,
) -> int:
    """Answer questions about stored videos over HTTP."""
    keys = tuple(filter(None, (key.strip() for key in os.environ.get(KEYS, "").split(","))))
    if not keys and not _is_loopback(host):
        raise ConfigError(f"--host {host} can be reached from elsewhere: set API keys in ${KEYS} (comma-separated)")
    cache = CacheConfig(device_gb=device_gb, host_gb=host_gb, disk=disk_cache, disk_gb=disk_gb)
    opened = Store.open(store)
    name = newest_checkpoint(opened, model).name
    try:
        from jobs.serving.app import ServiceConfig, create_app
        from jobs.serving.guard import GuardConfig
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'sttm[serve]'") from None
    config = ServiceConfig(
        guard=GuardConfig(requests_per_minute=requests_per_minute),
        timeout_s=timeout_s,
        max_tokens=max_tokens,
        default_tokens=min(128, max_tokens),
        shows_frames=frames,
    )
    os.environ.pop(KEYS, None)  # no other process needs to know them
    schedule = ScheduleConfig(max_rows=max_rows, max_waiting=max_waiting)
    answerer = _answerer(replicas, gpus_per_model, ray_address, (store, model, cache), schedule, drain_s)
    print(f"serving {opened.storage.url} with {name} on {url_of(host, port)}", flush=True)
    app = create_app(opened, name.rstrip("/").rsplit("/", 1)[-1], answerer, config, keys)
    listen(app, host, port, drain_s, is_private=not keys)
    return 0


def _answerer(
    replicas: int,
    gpus_per_model: int,
    ray_address: str | None,
    worker: tuple[str, str | None, CacheConfig],
    schedule: ScheduleConfig,
    drain_s: float,
) -> "Answerer":
    """A scheduler in this process, or replicas on Ray Serve."""
    if replicas == 1 and ray_address is None:
        store, model, cache = worker
        started_at = time.perf_counter()
        opened = QueryWorker.open(store, model, first_gpus(gpus_per_model), cache)
        print(f"model loaded in {time.perf_counter() - started_at:.1f} s", flush=True)
        return Scheduler(opened, schedule)
    try:
        from jobs.serving.replicas import Replicas
    except ImportError as error:
        raise ConfigError(f"{error}; --replicas needs: pip install 'sttm[serve]'") from None
    started = Replicas(replicas, gpus_per_model, ray_address, *worker, schedule, drain_s)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's own handler would abort; the server sets its own
    return started


def listen(app: Any, host: str, port: int, drain_s: int, is_private: bool) -> None:
    """Run the server until SIGTERM or SIGINT; what is under way then is finished."""
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from jobs.serving.connection import Connection

    if is_private:  # a page elsewhere must not reach this through a name that it points here
        app = TrustedHostMiddleware(app, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host])
    uvicorn.run(
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


def url_of(host: str, port: int) -> str:
    """Where a client finds a server that listens on a name, an IPv4 or an IPv6 address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
