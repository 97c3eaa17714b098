"""Which runs are at work and which were killed: real processes, a real store, and clocks that disagree."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.indexing import heartbeat
from jobs.indexing.heartbeat import Beat, Heartbeat
from jobs.indexing.other_runs import SILENT_FOR_S, OtherRuns
from sttm.errors import StoreError
from sttm.store.storage import Data, Storage

OWN = Beat.of_this_process("own", "recipe")
FAR = Beat("far", "recipe", machine="another one", pid=1, process_started="0")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process of this machine, which lives until a test kills it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def beat(storage: Storage, one: Beat, status: str = "running") -> None:
    """Write a run's heartbeat, and its record with this status."""
    storage.put(one.key, json.dumps(asdict(one)).encode())
    storage.put(f"runs/{one.run_id}.json", json.dumps({"run_id": one.run_id, "status": status, "done": 7}).encode())


def record(storage: Storage, run_id: str = "far") -> dict[str, Any]:
    return json.loads(storage.read(f"runs/{run_id}.json"))


def set_back(storage: Storage, one: Beat, seconds: float) -> None:
    """As if the clock that stamps the files were wrong."""
    path = Path(storage.url) / one.key
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


@pytest.mark.parametrize("clock_is_off_s", [0, 1e6, -1e6])
def test_a_run_elsewhere_is_at_work_once_its_heartbeat_changes_whatever_the_clocks_say(
    storage: Storage, clock_is_off_s: float
) -> None:
    others = OtherRuns(storage, OWN)
    for number in range(20):
        beat(storage, replace(FAR, number=number))
        set_back(storage, FAR, clock_is_off_s)
        others.look(now=10.0 * number)
        assert (others.at_work, others.in_doubt) == (([], ["far"]) if number == 0 else (["far"], []))
    assert record(storage)["status"] == "running"


@pytest.mark.parametrize("clock_is_off_s", [0, 1e6, -1e6])
def test_a_run_elsewhere_that_was_killed_is_never_at_work_and_is_found_out_after_a_minute_of_silence(
    storage: Storage, clock_is_off_s: float
) -> None:
    beat(storage, FAR)
    set_back(storage, FAR, clock_is_off_s)
    others = OtherRuns(storage, OWN)
    for now in (0.0, 10.0, SILENT_FOR_S):
        others.look(now)
        assert (others.at_work, others.in_doubt) == ([], ["far"])
        assert record(storage)["status"] == "running"
    others.look(SILENT_FOR_S + 1)
    assert (others.at_work, others.in_doubt) == ([], [])
    assert record(storage) == {"run_id": "far", "status": "killed", "done": 7}
    assert not storage.exists(FAR.key)


def test_a_run_that_is_killed_while_it_is_watched_is_at_work_no_more(storage: Storage) -> None:
    others = OtherRuns(storage, OWN)
    for number, now in enumerate((0.0, 10.0)):
        beat(storage, replace(FAR, number=number))
        others.look(now)
    assert others.at_work == ["far"]
    others.look(11.0 + SILENT_FOR_S)
    assert (others.at_work, record(storage)["status"]) == ([], "killed")


def test_a_run_killed_on_this_machine_is_found_out_at_once(
    storage: Storage, process: "subprocess.Popen[bytes]"
) -> None:
    here = replace(OWN, run_id="near", pid=process.pid, process_started=heartbeat._start_of(process.pid) or "")
    beat(storage, here)
    others = OtherRuns(storage, OWN)
    others.look()
    assert (others.at_work, record(storage, "near")["status"]) == (["near"], "running")
    process.kill()  # and nobody waits for it, so that it stays as a zombie
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    others.look()
    assert (others.at_work, record(storage, "near")["status"]) == ([], "killed")


def test_a_later_process_with_the_same_number_is_not_taken_for_the_run(storage: Storage) -> None:
    beat(storage, replace(OWN, run_id="near", process_started="1"))
    others = OtherRuns(storage, OWN)
    others.look()
    assert record(storage, "near")["status"] == "killed"


def test_a_run_that_ended_by_itself_is_not_called_killed(storage: Storage) -> None:
    beat(storage, FAR, status="finished")  # killed after it closed its record, before it removed its heartbeat
    others = OtherRuns(storage, OWN)
    for now in (0.0, 1.0 + SILENT_FOR_S):
        others.look(now)
    assert record(storage)["status"] == "finished"
    assert not storage.exists(FAR.key)


def test_a_run_of_another_recipe_is_not_named_but_found_out(storage: Storage) -> None:
    beat(storage, replace(FAR, recipe_digest="another"))
    others = OtherRuns(storage, OWN)
    others.look(0.0)
    assert (others.at_work, others.in_doubt) == ([], [])
    others.look(1.0 + SILENT_FOR_S)
    assert record(storage)["status"] == "killed"


@pytest.mark.parametrize(
    "data", [b"[]", b"{", b"\xff", b"null", b"[" * 200_000, b'{"run_id": 1}'], ids=lambda d: repr(d[:9])
)
def test_a_heartbeat_that_is_none_stops_no_run_and_hides_no_other(storage: Storage, data: bytes) -> None:
    storage.put("heartbeats/broken.json", data)
    others = OtherRuns(storage, OWN)
    for number in (0, 1):
        beat(storage, replace(FAR, number=number))
        others.look()
    assert others.at_work == ["far"]


@pytest.mark.parametrize("pid", [1 << 80, -1, 0, True, "1", None], ids=repr)
def test_a_forged_number_of_a_process_stops_no_run(storage: Storage, pid: Any) -> None:
    beat(storage, replace(OWN, run_id="forged", pid=pid))
    OtherRuns(storage, OWN).look()


class Reluctant(Storage):
    """Takes nothing while it is away."""

    is_away = False

    def put(self, key: str, data: Data) -> None:
        if self.is_away:
            raise StoreError(f"cannot write {key}: the bucket is away")
        super().put(key, data)


def test_a_killed_run_is_found_out_later_if_the_store_takes_nothing_now(tmp_path: Path) -> None:
    storage = Reluctant(str(tmp_path))
    beat(storage, FAR)
    others = OtherRuns(storage, OWN)
    others.look(0.0)
    storage.is_away = True
    others.look(1.0 + SILENT_FOR_S)
    assert (others.at_work, others.in_doubt, record(storage)["status"]) == ([], [], "running")
    storage.is_away = False
    others.look(2.0 + SILENT_FOR_S)
    assert record(storage)["status"] == "killed"


def test_a_run_beats_by_itself_until_it_ends_also_over_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_S", 0.01)
    storage = Reluctant(str(tmp_path))
    run = Heartbeat(storage, OWN)
    run.start()

    def number() -> int:
        found = Beat.parse(storage.read(OWN.key))
        assert found is not None
        return found.number

    def waits_for(count: int) -> None:
        while number() < count:
            pass

    waits_for(3)
    storage.is_away = True
    run._ended.wait(0.05)
    storage.is_away = False
    waits_for(number() + 3)
    run.stop()
    assert storage.keys("heartbeats") == []
