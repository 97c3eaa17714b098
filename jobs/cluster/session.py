"""Joining a Ray cluster or starting one on this machine, and the GPUs that an actor was given there."""

import math
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import ray
import torch

from sttm.errors import SttmError
from sttm.models.placement import first_gpus
from sttm.urls import redact_url

_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def start_ray(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` (or `$RAY_ADDRESS`), else start one on this machine that nobody else can join.

    Args:
        address: address of the cluster; None takes `$RAY_ADDRESS`.

    Raises:
        SttmError: no cluster answers at the address.
    """
    # The drivers look at every error themselves; Ray would also print the errors of results that nobody fetches.
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    if address := address or os.environ.get("RAY_ADDRESS"):
        print(f"joining the Ray cluster at {redact_url(address)}", flush=True)
        _require_cluster(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    else:
        print("starting Ray on this machine", flush=True)
        # A local Ray asks for a token and would leave one in the home folder; this token stays in memory.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def _require_cluster(address: str) -> None:
    """Raise SttmError if nothing answers at the address; Ray itself would try for minutes without a word."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # an address such as `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise SttmError(f"no Ray cluster answers at {address} ({error}); check --address and $RAY_ADDRESS") from error


def work_on_ray(address: str | None, stopping: threading.Event, work: Callable[[], None]) -> signal.Signals | None:
    """Join or start Ray and do the work, which must look at `stopping` and end soon after it is set.

    The first SIGTERM or SIGINT (Ctrl-C) sets `stopping`; one that comes while Ray starts leaves the work undone.

    Args:
        address: address of the cluster to join; None takes `$RAY_ADDRESS`, else a Ray on this machine.
        stopping: is set when the work should end early.
        work: does the work.

    Returns:
        The signal that asked to stop; None if none came.

    Raises:
        SttmError: no cluster answers at the address.
        KeyboardInterrupt: another SIGINT came while the work was ending.
    """
    came: list[int] = []
    # Ray is never interrupted while it starts or shuts down: it would end this process, with exit code 1 and no word.
    tolerated = math.inf

    def stop(number: int, _: object) -> None:
        came.append(number)
        stopping.set()
        if number == signal.SIGINT and len(came) > tolerated:
            raise KeyboardInterrupt
        if number == signal.SIGINT and len(came) == 1:  # `print` may be what the signal has interrupted
            os.write(2, b"\nstopping: what is under way is finished and kept; Ctrl-C again ends at once\n")

    _handle(stop)
    with ExitStack() as stack:
        with _signals() as seen:
            try:
                stack.enter_context(start_ray(address))
            except SystemExit:  # from the SIGTERM handler that Ray sets while it starts
                stopping.set()
            _handle(stop)  # instead of Ray's
            # Ray's handler raises SystemExit, which Python can swallow (in a destructor, say).
            if signal.SIGTERM in seen() and signal.SIGTERM not in came:
                came.append(signal.SIGTERM)
                stopping.set()
        if not stopping.is_set():
            tolerated = 1
            try:
                work()
            finally:
                tolerated = math.inf
    tolerated = 2  # an impatient second Ctrl-C costs the caller no closing words, but a third one ends anything
    return signal.Signals(came[0]) if came else None


def _handle(handler: Callable[[int, Any], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


@contextmanager
def _signals() -> Iterator[Callable[[], bytes]]:
    """Note which signals come inside the block, whatever handles them.

    Yields a function that returns the numbers of the signals that came since its last call, one byte each.
    """
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
    """The GPUs that Ray gave this actor, or the CPU if it gave none; outside Ray the first GPU of the machine.

    Ray is asked since it does not always hide the GPUs of other actors.
    """
    if not ray.is_initialized():  # asking would start a Ray
        return first_gpus(1)
    given = len(ray.get_gpu_ids())
    return first_gpus(given) if given else (torch.device("cpu"),)
