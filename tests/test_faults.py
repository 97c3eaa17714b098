"""The index job among videos that crash, hang and exhaust their process: a real Ray, real signals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.driver import allocating_at_most
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
