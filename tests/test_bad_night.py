"""Sixty videos of which a fifth are poison, through the index job as a user runs it: a real Ray, real signals."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from bad_night import CAUSES, HARMS, write_bad_night

from sttm.store.maintenance import verify
from sttm.store.store import Store

ROOT = Path(__file__).parent.parent
TRIES = 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_poison_costs_one_row_and_no_innocent_video(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    manifest, good = write_bad_night(tmp_path / "corpus")
    tries = tmp_path / "tries"
    limits = ["decode_timeout_s=10", "decode_memory_bytes=2000000000", f"crash_tries={TRIES}"]
    settings = [f"model.path={qwen2_vl_folder}", "video.max_frames=8", *(f"run.{limit}" for limit in limits)]
    options = [part for setting in settings for part in ("--set", setting)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.index", "--corpus", manifest, "--store", tmp_path / "store", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'poison'}:{ROOT}", "POISON_LOG": str(tries)},
        timeout=500,
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["total"], summary["done"], summary["failed"], summary["left"]) == (60, 48, 12, 0)
    assert seconds < 400, "the poison must not hold up the rest"

    store = Store.open(str(tmp_path / "store"))
    assert list(verify(store)) == []
    rows = store.catalog.history()
    assert Counter(row.name for row in rows if row.status == "ok") == Counter(good)
    assert len({row.identity for row in rows if row.status == "ok"}) == 48
    errors = [row for row in rows if row.status == "error"]
    assert sorted((row.name, row.error_code) for row in errors) == sorted(CAUSES.items())

    assert Counter(tries.read_text().split()) == dict.fromkeys(HARMS, TRIES)
    messages = {row.name: row.error_message for row in errors}
    assert all(f"crashed {TRIES} times" in messages[f"{harm}.mp4"] for harm in HARMS)
    assert "MemoryError" in messages["hog.mp4"]
    assert "a bug in somebody's library" in messages["bug.mp4"]
    assert all(name in message for name, message in messages.items())
