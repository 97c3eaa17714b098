"""The index job among kills, stops and other runs: a real Ray, real signals."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError
from test_actor_pool import Heard

from jobs.cluster.faults import is_lost
from jobs.cluster.process_limits import allocating_at_most, killed_after, yielding_to_others
from jobs.cluster.retry import Tries
from jobs.cluster.settings import RunConfig
from jobs.indexing.driver import Driver
from jobs.indexing.waiting import Video
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.errors import ConfigError, ModelError
from sttm.store.maintenance import verify
from sttm.store.store import Store

ROOT = Path(__file__).parent.parent
CLIP = Path(__file__).parent / "data" / "clips" / "bbb_12s_h264.mp4"


def test_allocation_limit_ends_with_its_block() -> None:
    with allocating_at_most(200 << 20), pytest.raises(MemoryError):
        bytearray(1 << 30)
    assert len(bytearray(300 << 20)) == 300 << 20


def test_a_deadline_holds_though_another_thread_ends_well_before_its_own() -> None:
    child = os.fork()
    if child == 0:
        hangs = threading.Thread(target=lambda: hang(seconds=0.3))
        hangs.start()
        time.sleep(0.1)
        with killed_after(60):
            pass
        hangs.join()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def hang(seconds: float) -> None:
    with killed_after(seconds):
        time.sleep(10)


def test_a_thread_yields_to_others_in_the_block_only() -> None:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with yielding_to_others():
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before


def test_a_system_that_refuses_the_policy_costs_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with yielding_to_others():
        done = True
    assert done


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("The actor died because its node has died. Node Id: a\n\tthe actor's node was terminated expectedly", True),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", False),
    ],
)
def test_an_actor_is_lost_with_its_node_and_blamed_for_its_own_death(words: str, expected: bool) -> None:
    assert is_lost(ActorDiedError(ActorDiedErrorContext(error_message=words, actor_id=bytes(16)))) == expected


@pytest.mark.parametrize("error", [ConfigError("head_dim 7"), ModelError("no weight 'x'")], ids=repr)
def test_what_no_video_could_be_indexed_with_ends_the_run(error: Exception) -> None:
    driver = Driver(IndexConfig(), RunConfig(), {}, "store", "run", Heard())
    with pytest.raises(type(error), match=str(error)):
        driver._failed(Video(VideoRef.from_uri("s3://bucket/a.mp4")), error)


def test_passwords_of_a_uri_are_not_in_the_message_of_a_crash() -> None:
    heard = Heard()
    driver = Driver(IndexConfig(), RunConfig(), {}, "store", "run", heard)
    video = Video(VideoRef.from_uri("s3://user:secret@bucket/a.mp4"), Tries(crashes=2))
    driver._failed(video, RuntimeError("cannot parse s3://user:secret@bucket/a.mp4"))
    assert heard.causes == ["s3://bucket/a.mp4 crashed 3 times, last: RuntimeError: cannot parse s3://bucket/a.mp4"]


def start(corpus: Path, store: Path, model: Path, **env: str) -> subprocess.Popen[str]:
    """Start an index job in a process group of its own."""
    options = ["--corpus", str(corpus), "--store", str(store), "--set", f"model.path={model}"]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.index", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str]) -> tuple[int, dict]:
    """Exit code and closing summary."""
    out, _ = job.communicate(timeout=280)
    lines = [line for line in out.splitlines() if line.startswith('{"run_id"')]
    assert lines, out
    return job.returncode, json.loads(lines[-1])


def copies(folder: Path, count: int) -> Path:
    """`count` videos of different content; those that are there already stay as they are."""
    folder.mkdir(exist_ok=True)
    for i in range(len(list(folder.iterdir())), count):
        (folder / f"clip-{i:03}.mp4").write_bytes(CLIP.read_bytes() + bytes(i))
    return folder


def check_complete(store: Path, videos: int) -> None:
    """The store verifies clean, and every video is in it once."""
    opened = Store.open(str(store))
    assert list(verify(opened)) == []
    rows = opened.catalog.rows()
    assert [row.status for row in rows] == ["ok"] * videos
    assert len({row.identity for row in rows}) == len(list((store / "commit").rglob("*.json"))) == videos


def commits(store: Path) -> int:
    """How many videos are committed."""
    return len(list(store.glob("commit/*/*.json")))


def wait_for_commits(store: Path, count: int, job: subprocess.Popen[str]) -> None:
    """Until `count` videos are committed."""
    deadline = time.monotonic() + 200
    while commits(store) < count:
        assert job.poll() is None, "the job ended first"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def press_ctrl_c(job: subprocess.Popen[str]) -> None:
    """A terminal sends SIGINT to the job and to all processes that it has started."""
    os.killpg(job.pid, signal.SIGINT)


def statuses(store: Path) -> list[str]:
    """How the runs of a store ended, or that they have not, oldest first."""
    return [json.loads(record.read_text())["status"] for record in sorted((store / "runs").iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [subprocess.Popen.terminate, press_ctrl_c])
def test_a_stopped_job_drains_and_the_next_run_completes(
    tmp_path: Path, qwen2_vl_folder: Path, stop: Callable[[subprocess.Popen[str]], None]
) -> None:
    corpus, store = copies(tmp_path / "corpus", 16), tmp_path / "store"
    job = start(corpus, store, qwen2_vl_folder)
    wait_for_commits(store, 2, job)
    stop(job)
    code, summary = finish(job)
    assert code == (130 if stop is press_ctrl_c else 143)
    assert statuses(store) == ["stopped"]
    assert 2 <= summary["done"] < 16
    assert summary["left"] == 16 - summary["done"]
    check_complete(store, summary["done"])
    code, rest = finish(start(corpus, store, qwen2_vl_folder))
    assert (code, rest["done"], rest["skipped"]) == (0, summary["left"], summary["done"])
    assert statuses(store) == ["stopped", "finished"]
    check_complete(store, 16)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_job_at_once_and_loses_nothing(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    corpus, store = copies(tmp_path / "corpus", 40), tmp_path / "store"
    job = start(corpus, store, qwen2_vl_folder)
    wait_for_commits(store, 2, job)
    started = time.monotonic()
    press_ctrl_c(job)
    time.sleep(0.1)
    press_ctrl_c(job)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 130, out
    assert time.monotonic() - started < 20
    assert "the same command goes on" in out
    assert "Traceback" not in out
    assert statuses(store) == ["stopped"]
    code, rest = finish(start(corpus, store, qwen2_vl_folder))
    assert (code, rest["done"] + rest["skipped"]) == (0, 40)
    check_complete(store, 40)


@pytest.mark.slow
def test_a_killed_run_is_called_killed_by_the_next_one_and_never_at_work(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    corpus, store = copies(tmp_path / "corpus", 8), tmp_path / "store"
    job = start(corpus, store, qwen2_vl_folder)
    wait_for_commits(store, 1, job)
    processes = family(job)
    job.kill()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    job.communicate(timeout=60)
    assert statuses(store) == ["running"]
    out, _ = start(corpus, store, qwen2_vl_folder).communicate(timeout=280)
    assert "at work" not in out
    assert statuses(store) == ["killed", "finished"]
    check_complete(store, 8)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [subprocess.Popen.terminate, press_ctrl_c])
@pytest.mark.parametrize("after_s", [0.2, 1.0, 2.5])
def test_a_stop_while_ray_starts_ends_the_job_as_later_on(
    tmp_path: Path, qwen2_vl_folder: Path, after_s: float, stop: Callable[[subprocess.Popen[str]], None]
) -> None:
    job = start(copies(tmp_path / "corpus", 2), tmp_path / "store", qwen2_vl_folder)
    assert job.stdout is not None
    while job.stdout.readline() != "2 videos: 2 to index, 0 stored already, 0 failed before\n":
        assert job.poll() is None
    time.sleep(after_s)
    stop(job)
    code, summary = finish(job)
    assert (code, summary["done"] + summary["left"]) == (130 if stop is press_ctrl_c else 143, 2)
    assert statuses(tmp_path / "store") == ["stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [{"CPU": 1}, {"CPU": 1, "GPU": 1}], ids=str)
def test_a_machine_with_one_cpu_is_enough(tmp_path: Path, qwen2_vl_folder: Path, machine: dict[str, int]) -> None:
    corpus = copies(tmp_path / "corpus", 2)
    job = start(corpus, tmp_path / "store", qwen2_vl_folder, RAY_OVERRIDE_RESOURCES=json.dumps(machine))
    code, summary = finish(job)
    assert (code, summary["done"]) == (0, 2)


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    corpus, store = copies(tmp_path / "corpus", 12), tmp_path / "store"
    first = start(corpus, store, qwen2_vl_folder)
    wait_for_commits(store, 1, first)
    second = start(corpus, store, qwen2_vl_folder)
    summaries = [finish(job) for job in (first, second)]
    assert [code for code, _ in summaries] == [0, 0]
    check_complete(store, 12)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_nothing_is_lost_or_stored_twice(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    """22 kills -9, each of a process at work: a run survives that of its decode worker or prefill actor and goes on,
    then its driver or all of Ray is killed; the last one survives both and completes. New videos come before each run,
    so that none is ever done early."""
    store, rng, total = tmp_path / "store", random.Random(0), 0
    for round_ in range(10):
        total = commits(store) + 24
        corpus = copies(tmp_path / "corpus", total)
        job = start(corpus, store, qwen2_vl_folder)
        wait_for_commits(store, 1 + rng.randrange(4) + commits(store), job)
        kill_at_work(job, ("ray::decode_video", "ray::PrefillActor")[round_ % 2], rng)
        wait_for_commits(store, 1 + rng.randrange(4) + commits(store), job)
        kill_at_work(job, ("jobs.index", "raylet/raylet")[round_ // 2 % 2], rng)
        assert commits(store) < total, "the kill came too late"
    total = commits(store) + 24
    job = start(copies(tmp_path / "corpus", total), store, qwen2_vl_folder)
    for word in ("ray::PrefillActor", "ray::decode_video"):
        wait_for_commits(store, 2 + commits(store), job)
        kill_at_work(job, word, rng)
    code, summary = finish(job)
    assert (code, summary["done"] + summary["skipped"]) == (0, total), "the run itself must lose none"
    check_complete(store, total)


def kill_at_work(job: subprocess.Popen[str], word: str, rng: random.Random) -> None:
    """kill -9 the process of the job with this word in its command line, within half a second of it being seen at work.

    The driver's and the raylet's death ends the job: the rest of it is killed too, up to two seconds later.
    """
    time.sleep(rng.uniform(0, 0.5))
    while not (victim := at_work(processes := family(job), word)):
        assert job.poll() is None, f"the run ended before {word} could be killed"
    victim.kill()
    if not word.startswith("ray::"):
        time.sleep(rng.uniform(0, 2))
        for process in {*processes, *family(job)}:
            with contextlib.suppress(psutil.Error):
                process.kill()
        job.communicate(timeout=60)


def at_work(processes: list[psutil.Process], word: str) -> psutil.Process | None:
    """The process with this word in its command line, if it is at work: an actor that uses a CPU, a decode worker (Ray
    calls it so only while it decodes), a driver or raylet while a video is decoded."""
    names = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            names[process] = " ".join(process.cmdline())
    found = next((process for process, name in names.items() if word in name), None)
    if found and "PrefillActor" in word:
        with contextlib.suppress(psutil.Error):
            return found if found.cpu_percent(0.05) > 0 else None
    return found if any("ray::decode_video" in name for name in names.values()) else None


def family(job: subprocess.Popen[str]) -> list[psutil.Process]:
    """The job's process and all below it."""
    try:
        return [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    except psutil.Error:
        return []
