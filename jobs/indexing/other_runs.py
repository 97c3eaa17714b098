"""Which other runs are at work in the same store, and which were killed.

No clock of another machine, nor of the store, is believed. A run whose process is on this machine is looked up there.
Any other run is watched: if its heartbeat changes, the run is at work; if it stays the same for `SILENT_FOR_S` seconds
by this process's own clock, the run was killed. Before either has happened nothing is said about it.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.indexing.heartbeat import BEAT_EVERY_S, FOLDER, Beat
from sttm.errors import StoreError
from sttm.store.storage import MissingObjectError, Storage

SILENT_FOR_S = 6 * BEAT_EVERY_S


@dataclass(frozen=True)
class Watched:
    """What was seen of one run's heartbeat.

    Attributes:
        beat: the newest beat.
        since: when this beat was first seen, by this process's own clock.
        has_changed: whether an earlier beat was seen before it.
    """

    beat: Beat
    since: float
    has_changed: bool = False

    def seen(self, beat: Beat, now: float) -> "Watched":
        """What is known after another look, which found `beat`."""
        return self if beat == self.beat else Watched(beat, now, has_changed=True)

    def is_alive(self, process_is_alive: bool | None, now: float) -> bool | None:
        """Whether the run is at work; None while that is not known.

        Args:
            process_is_alive: whether its process is, where this machine can know it.
            now: the present time by the clock of `since`.
        """
        if process_is_alive is not None:
            return process_is_alive
        if now - self.since > SILENT_FOR_S:
            return False
        return True if self.has_changed else None


class OtherRuns:
    """Watches the heartbeats of all runs of a store but one's own.

    Args:
        storage: the store's storage.
        own: any beat of the own run.

    Attributes:
        at_work: names of the other runs of the same recipe that are at work, sorted.
        in_doubt: names of those of the same recipe of which nothing is known yet, sorted.
    """

    def __init__(self, storage: Storage, own: Beat) -> None:
        self._storage, self._own = storage, own
        self._watched: dict[str, Watched] = {}
        self.at_work: list[str] = []
        self.in_doubt: list[str] = []

    def look(self, now: float | None = None) -> None:
        """Read all heartbeats once; write into the records of killed runs that they were killed.

        Args:
            now: the present time; None takes `time.monotonic`.

        Raises:
            StoreError: the store cannot be listed.
        """
        now = time.monotonic() if now is None else now
        watched, of_recipe = {}, {}
        for key in self._storage.keys(FOLDER):
            beat = self._read(key)
            if beat is None or beat.run_id == self._own.run_id:
                continue
            one = self._watched[key].seen(beat, now) if key in self._watched else Watched(beat, now)
            is_alive = one.is_alive(beat.process_is_alive(), now)
            if is_alive is False and self._bury(key, beat):
                continue
            watched[key] = one
            if beat.recipe_digest == self._own.recipe_digest and is_alive is not False:
                of_recipe[beat.run_id] = is_alive
        self._watched = watched
        self.at_work = sorted(run_id for run_id, is_alive in of_recipe.items() if is_alive)
        self.in_doubt = sorted(run_id for run_id, is_alive in of_recipe.items() if is_alive is None)

    def _read(self, key: str) -> Beat | None:
        """The beat at a key; None if it is gone or damaged, since nobody's heartbeat may stop another run."""
        try:
            beat = Beat.parse(self._storage.read(key))
        except StoreError:
            return None
        return beat if beat is not None and beat.key == key else None

    def _bury(self, key: str, beat: Beat) -> bool:
        """Say in a killed run's record that it was killed, and remove its heartbeat; False if the store refuses.

        Should the run live after all, its next beat and its next record replace what is written here.
        """
        with suppress(StoreError):
            record = self._record(beat.run_id)
            if record.get("status") == "running":
                killed = {**record, "status": "killed"}
                self._storage.put(record_key(beat.run_id), json.dumps(killed, indent=1).encode())
            self._storage.delete(key)
            return True
        return False

    def _record(self, run_id: str) -> dict[str, Any]:
        try:
            record = json.loads(self._storage.read(record_key(run_id)))
        except (ValueError, RecursionError, MissingObjectError):
            return {}
        return record if isinstance(record, dict) else {}


def record_key(run_id: str) -> str:
    """Where the record of a run is in the store."""
    return f"runs/{run_id}.json"
