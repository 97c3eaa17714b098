"""The index job among videos that crash, hang and exhaust their process: a real Ray, real signals."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.limits import allocating_at_most
from sttm.store.maintenance import verify
from sttm.store.store import Store

ROOT = Path(__file__).parent.parent
CLIP = Path(__file__).parent / "data" / "clips" / "bbb_12s_h264.mp4"


@pytest.mark.slow
def test_poison_costs_a_row_each_and_no_innocent_video(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    good = [tmp_path / f"good-{i}.mp4" for i in range(8)]
    for i, path in enumerate(good):
        shutil.copy(CLIP, path)
        path.write_bytes(path.read_bytes() + bytes(i))  # different content, same frames
    poison = [f"poison://{harm}/{harm}.mp4" for harm in ("segv", "hang", "hog", "bug")]
    rows = [{"uri": str(p)} for p in good[:4]] + [{"uri": u} for u in poison] + [{"uri": str(p)} for p in good[4:]]
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    limits = ["run.decode_timeout_s=10", "run.decode_memory_bytes=2000000000", f"model.path={qwen2_vl_folder}"]
    options = [part for setting in limits for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.index", "--corpus", manifest, "--store", tmp_path / "store", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'poison'}:{ROOT}"},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    catalog = Store.open(str(tmp_path / "store")).catalog.rows()
    assert {row.name for row in catalog if row.status == "ok"} == {path.name for path in good}
    errors = {row.name: row.error_message for row in catalog if row.status == "error"}
    assert errors.keys() == {"segv.mp4", "hang.mp4", "hog.mp4", "bug.mp4"}
    assert all("crashed 3 times" in message for message in errors.values())
    assert "MemoryError" in errors["hog.mp4"]
    assert "a bug in somebody's library" in errors["bug.mp4"]


def test_allocation_limit_ends_with_its_block() -> None:
    with allocating_at_most(200 << 20), pytest.raises(MemoryError):
        bytearray(1 << 30)
    assert len(bytearray(300 << 20)) == 300 << 20


def start(corpus: Path, store: Path, model: Path) -> subprocess.Popen[str]:
    """Start an index job in a process group of its own."""
    options = ["--corpus", str(corpus), "--store", str(store), "--set", f"model.path={model}"]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.index", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str]) -> tuple[int, dict]:
    """Exit code and closing summary."""
    out, _ = job.communicate(timeout=280)
    lines = [line for line in out.splitlines() if line.startswith('{"run_id"')]
    assert lines, out
    return job.returncode, json.loads(lines[-1])


def copies(folder: Path, count: int) -> Path:
    """`count` videos of different content."""
    folder.mkdir()
    for i in range(count):
        (folder / f"clip-{i:03}.mp4").write_bytes(CLIP.read_bytes() + bytes(i))
    return folder


def check_complete(store: Path, videos: int) -> None:
    """The store verifies clean, and every video is in it once."""
    opened = Store.open(str(store))
    assert list(verify(opened)) == []
    rows = opened.catalog.rows()
    assert [row.status for row in rows] == ["ok"] * videos
    assert len({row.identity for row in rows}) == len(list((store / "commit").rglob("*.json"))) == videos


def wait_for_commits(store: Path, count: int, job: subprocess.Popen[str]) -> None:
    """Until `count` videos are committed, or the job has ended."""
    deadline = time.monotonic() + 200
    while len(list(store.glob("commit/*/*.json"))) < count and job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_drains_and_the_next_run_completes(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    corpus, store = copies(tmp_path / "corpus", 16), tmp_path / "store"
    job = start(corpus, store, qwen2_vl_folder)
    wait_for_commits(store, 2, job)
    job.send_signal(signal.SIGTERM)
    code, summary = finish(job)
    assert code == 143
    assert 2 <= summary["done"] < 16
    assert summary["left"] == 16 - summary["done"]
    check_complete(store, summary["done"])
    code, rest = finish(start(corpus, store, qwen2_vl_folder))
    assert (code, rest["done"], rest["skipped"]) == (0, summary["left"], summary["done"])
    check_complete(store, 16)


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
@pytest.mark.timeout(1500)
def test_killed_at_random_moments_nothing_is_lost_or_stored_twice(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    """20 rounds of kill -9 for a decode worker, a prefill actor, the driver, or all of Ray; then one run completes."""
    corpus, store = copies(tmp_path / "corpus", 40), tmp_path / "store"
    rng = random.Random(0)
    for round_ in range(20):
        job = start(corpus, store, qwen2_vl_folder)
        time.sleep(rng.uniform(4, 14))
        family = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
        kill_first(family, ("decode_video", "PrefillActor", "jobs.index", "raylet")[round_ % 4])
        time.sleep(rng.uniform(0, 3))
        kill_first(family, "")
        job.communicate(timeout=60)
    code, _ = finish(start(corpus, store, qwen2_vl_folder))
    assert code == 0
    check_complete(store, 40)


def kill_first(processes: list[psutil.Process], word: str) -> None:
    """kill -9 the first process with this word in its command line; the empty word kills all of them."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                process.kill()
                if word:
                    return
