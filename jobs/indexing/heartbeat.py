"""The sign of life of a run: a small object in the store that the run rewrites every few seconds.

    heartbeats/<run_id>.json    there while the run lasts; also after it was killed, until another run clears it away

A thread of its own writes it, so that a driver that waits for Ray or for a slow store still shows that it lives.
"""

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from sttm.errors import StoreError
from sttm.store.storage import Storage

FOLDER = "heartbeats"
BEAT_EVERY_S = 10.0


@dataclass(frozen=True)
class Beat:
    """What a heartbeat says.

    Attributes:
        run_id: name of the run.
        recipe_digest: the recipe that it indexes with.
        machine: names the machine's boot and the process namespace that `pid` belongs to; empty if unknown.
        pid: process of the driver.
        process_started: when the process started, in ticks since the boot: a later process may have the same `pid`.
        number: one more with each beat.
    """

    run_id: str
    recipe_digest: str
    machine: str
    pid: int
    process_started: str
    number: int = 0

    @staticmethod
    def of_this_process(run_id: str, recipe_digest: str) -> "Beat":
        """The first beat of a run whose driver is this process."""
        return Beat(run_id, recipe_digest, _this_machine(), os.getpid(), _start_of(os.getpid()) or "")

    @staticmethod
    def parse(data: bytes) -> "Beat | None":
        """The beat that an object holds; None if it holds none."""
        try:
            beat = Beat(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None
        return beat if isinstance(beat.run_id, str) and isinstance(beat.pid, int) and beat.pid > 0 else None

    @property
    def key(self) -> str:
        """Where it is in the store."""
        return f"{FOLDER}/{self.run_id}.json"

    def process_is_alive(self) -> bool | None:
        """Whether the driver's process is alive; None if that cannot be known from this machine."""
        if not self.machine or self.machine != _this_machine():
            return None
        try:
            os.kill(self.pid, 0)  # sends nothing
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):  # another user's process, or no number of a process
            return None
        started = _start_of(self.pid)
        return None if not self.process_started else started == self.process_started


class Heartbeat:
    """Beats while a run lasts.

    Args:
        storage: the store's storage.
        first: what the first beat says.
    """

    def __init__(self, storage: Storage, first: Beat) -> None:
        self._storage, self._beat = storage, first
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat once, and then again and again in a thread.

        Raises:
            StoreError: the store does not take the first beat.
        """
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Beat no more and remove the heartbeat from the store.

        Raises:
            StoreError: the store cannot remove it.
        """
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(BEAT_EVERY_S)  # a beat under way would bring the heartbeat back
        self._storage.delete(self._beat.key)

    def _go_on(self) -> None:
        while not self._ended.wait(BEAT_EVERY_S):
            with suppress(StoreError):  # the driver meets the same outage and reports it
                self._write()

    def _write(self) -> None:
        self._beat = replace(self._beat, number=self._beat.number + 1)
        self._storage.put(self._beat.key, json.dumps(asdict(self._beat)).encode())


@lru_cache(maxsize=1)
def _this_machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None if it has ended or hides it."""
    try:
        # The name of the program comes before these fields and may hold spaces and brackets.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]
