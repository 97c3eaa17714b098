"""The jobs as a user runs them: real processes, a real Ray, real encoded video, a store on disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

ROOT = Path(__file__).parent.parent
CLIPS = Path(__file__).parent / "data" / "clips"


def job(name: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs.<name>` to its end and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos and what a real folder also holds."""
    folder = tmp_path_factory.mktemp("corpus")
    shutil.copy(CLIPS / "bbb_12s_h264.mp4", folder / "good.mp4")
    shutil.copy(CLIPS / "bbb_12s_av1.mp4", folder / "av1.mp4")
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    data = (CLIPS / "bbb_12s_h264.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    return folder


class Indexed:
    """A corpus, the store it was indexed into, and what the job said."""

    def __init__(self, corpus: Path, store: Path, model: Path) -> None:
        self.corpus, self.store = corpus, store
        self.options = ["--corpus", str(corpus), "--store", str(store), "--set", f"model.path={model}"]
        # 3 of 5 videos are bad, which is more than half
        self.first = job("index", *self.options, code=3)


@pytest.fixture(scope="module")
def indexed(corpus: Path, tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Indexed:
    return Indexed(corpus, tmp_path_factory.mktemp("run") / "store", qwen2_vl_folder)


def test_good_videos_are_stored_and_each_bad_one_is_an_error_row(indexed: Indexed) -> None:
    summary = last_json(indexed.first)
    assert (summary["total"], summary["done"], summary["failed"], summary["skipped"]) == (5, 2, 3, 0)
    assert summary["retained_ratio"] == pytest.approx(0.3, abs=0.01)
    assert summary["bytes_written"] > 0
    report = json.loads((indexed.store / "runs" / f"{summary['run_id']}.json").read_text())
    codes = {row["name"]: row["error_code"] for row in report["errors"]}
    assert codes.keys() == {"text.mp4", "empty.mp4", "cut.mp4"}
    assert codes["text.mp4"] == "not_a_video"
    assert codes["empty.mp4"] == "empty_file"
    assert "Traceback" not in indexed.first.stdout + indexed.first.stderr


def test_second_run_does_nothing_and_says_so(indexed: Indexed) -> None:
    again = job("index", *indexed.options)
    summary = last_json(again)
    assert (summary["done"], summary["failed"], summary["skipped"]) == (0, 0, 5)
    assert "nothing to do" in again.stdout


def test_dry_run_of_another_recipe_plans_everything_and_writes_nothing(indexed: Indexed) -> None:
    before = sorted(indexed.store.rglob("*"))
    plan = job("index", *indexed.options, "--set", "merge.budget=0.5", "--dry-run")
    assert last_json(plan)["to_index"] == 5
    assert sorted(indexed.store.rglob("*")) == before


@pytest.mark.parametrize("by", ["name", "uri", "id"])
def test_ask_finds_the_video_by_name_uri_and_id(indexed: Indexed, by: str) -> None:
    from sttm.store.store import Store

    row = Store.open(str(indexed.store)).find("good.mp4")
    video = {"name": row.name, "uri": row.uri, "id": row.video_id}[by]
    line = last_json(
        job("ask", "--store", str(indexed.store), "--video", video, "What?", "--json", "--max-tokens", "4")
    )
    assert {"video", "question", "answer", "ttft_s", "load_s", "kv_tokens", "identity"} <= line.keys()
    assert line["identity"] == row.identity
    assert 0 < line["load_s"] <= line["ttft_s"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "--store", "STORE", "--video", "god.mp4", "Why?"], "did you mean 'good.mp4'"),
        (["ask", "--store", "STORE", "--video", "text.mp4", "Why?"], "not_a_video"),
        (["ask", "--store", "/nowhere/at/all", "--video", "good.mp4", "Why?"], "no store at"),
        (["index", "--corpus", "/nowhere/at/all", "--store", "STORE"], "/nowhere/at/all"),
        (["index", "--corpus", "CORPUS", "--store", "STORE", "--set", "merge.bugdet=1"], "did you mean 'budget'"),
        (["index", "--corpus", "CORPUS", "--store", "STORE", "--set", "model.path=no/such/model"], "no/such/model"),
    ],
)
def test_user_errors_are_one_line_and_a_code(indexed: Indexed, arguments: list[str], words: str) -> None:
    places = {"STORE": str(indexed.store), "CORPUS": str(indexed.corpus)}
    done = job(*(places.get(a, a) for a in arguments), code=1)
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_ask_refuses_a_model_that_did_not_make_the_cache(indexed: Indexed, tmp_path: Path) -> None:
    from checkpoints import write_qwen2_vl

    other = write_qwen2_vl(tmp_path / "other", seed=1)
    done = job("ask", "--store", str(indexed.store), "--video", "good.mp4", "Why?", "--model", str(other), code=1)
    assert "its weights differ" in done.stderr


@pytest.mark.slow
def test_index_ask_verify_and_gc_on_a_real_s3_server(corpus: Path, qwen2_vl_folder: Path, s3_server: S3Server) -> None:
    store = s3_server.new_root()
    options = ["--corpus", str(corpus), "--store", store, "--set", f"model.path={qwen2_vl_folder}"]
    first = last_json(job("index", *options, code=3))
    assert (first["done"], first["failed"]) == (2, 3)
    assert last_json(job("index", *options))["skipped"] == 5
    answer = last_json(job("ask", "--store", store, "--video", "av1.mp4", "What?", "--json", "--max-tokens", "4"))
    assert answer["kv_tokens"] > 0
    assert "as it was committed" in job("store", "verify", "--store", store).stdout
    job("store", "gc", "--store", store, "--min-age-hours", "0", "--delete")
    assert "as it was committed" in job("store", "verify", "--store", store).stdout
    job("store", "rm", "av1.mp4", "--store", store)
    assert "no video" in job("ask", "--store", store, "--video", "av1.mp4", "What?", code=1).stderr
