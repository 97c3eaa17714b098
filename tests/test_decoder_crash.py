"""A video at which decord kills its process is decoded by PyAV, through the index job as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from media import encode_video

from sttm.store.store import Store

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_crash_of_decord_is_tried_again_with_pyav(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.mp4").write_bytes(encode_video())
    settings = [f"model.path={qwen2_vl_folder}", "video.decoder=decord", "run.crash_tries=1"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.index", "--corpus", tmp_path / "corpus", "--store", tmp_path / "store", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'poison_decord'}:{ROOT}"},
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["done"], summary["failed"]) == (1, 0), done.stdout
    store = Store.open(str(tmp_path / "store"))
    (row,) = store.catalog.history()
    assert store.manifest(row.identity).facts.sampling.decoder.startswith("pyav")
