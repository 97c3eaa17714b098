"""Joining a Ray cluster, or starting one of our own; and what an actor was given there."""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import ray
import torch

from sttm.errors import SttmError
from sttm.models.placement import first_gpus

_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def start_ray(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` (or `$RAY_ADDRESS`), else start an embedded one that nobody else can join.

    Raises:
        SttmError: no cluster answers at the address.
    """
    # The driver looks at every error itself; Ray would also print those of results that nobody will fetch.
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    if address := address or os.environ.get("RAY_ADDRESS"):
        _require_cluster(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    else:
        # A local Ray asks for a token by default and would leave one in the home folder; this one stays in memory.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def _require_cluster(address: str) -> None:
    """Ray itself tries for many minutes, and says only in its log what it tries."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # such as `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise SttmError(f"no Ray cluster answers at {address} ({error}); check --address and $RAY_ADDRESS") from error


def work_on_ray(address: str | None, stopping: threading.Event, work: Callable[[], None]) -> None:
    """Join or start Ray and do the work. SIGTERM sets `stopping`; while Ray starts, that is given up."""

    def stop(*_: object) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    with ExitStack() as stack:
        with _signals() as came:
            try:
                stack.enter_context(start_ray(address))
                signal.signal(signal.SIGTERM, stop)  # Ray has set its own, which exits
            except SystemExit:
                stopping.set()
            if signal.SIGTERM in came():  # what Ray's raises is lost where Python cannot hand it on
                stopping.set()
        if not stopping.is_set():
            work()


@contextmanager
def _signals() -> Iterator[Callable[[], bytes]]:
    """The numbers of the signals that have come meanwhile, whoever handled them; the first few."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def came() -> bytes:
            with suppress(BlockingIOError):
                return reader.recv(1024)
            return b""

        try:
            yield came
        finally:
            signal.set_wakeup_fd(before)


def given_devices() -> tuple[torch.device, ...]:
    """The GPUs that Ray gave this actor, the CPU if none (Ray does not hide the others); without Ray the first GPU."""
    if not ray.is_initialized():  # asking would start one
        return first_gpus(1)
    given = len(ray.get_gpu_ids())
    return first_gpus(given) if given else (torch.device("cpu"),)
