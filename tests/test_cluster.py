"""The jobs as a user runs them: the command line, a real Ray, real encoded video, a store on disk."""

import importlib
import io
import json
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from media import encode_video
from s3_server import S3Server

from jobs.cluster.session import start_ray
from sttm.errors import SttmError
from sttm.store.store import Store

ROOT = Path(__file__).parent.parent
CLIPS = Path(__file__).parent / "data" / "clips"


def on_ray(name: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs.<name>`, which starts a Ray, as a process to its end and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def job(name: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs.<name>` within this process, which has imported torch already, and check its exit code."""
    command = importlib.import_module(f"jobs.{name}").command
    out, err = io.StringIO(), io.StringIO()
    argv = [str(ROOT / "jobs" / f"{name}.py"), *arguments]
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err), chdir(ROOT):
        patched.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            command()
    done = subprocess.CompletedProcess(argv, ended.value.code or 0, out.getvalue(), err.getvalue())
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
        self.first = on_ray("index", *self.options, code=3)


@pytest.fixture(scope="module")
def indexed(corpus: Path, tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Indexed:
    return Indexed(corpus, tmp_path_factory.mktemp("run") / "store", qwen2_vl_folder)


def test_good_videos_are_stored_and_each_bad_one_is_an_error_row(indexed: Indexed) -> None:
    summary = last_json(indexed.first)
    assert (summary["total"], summary["done"], summary["failed"], summary["skipped"]) == (5, 2, 3, 0)
    assert summary["retained_ratio"] == pytest.approx(0.3, abs=0.01)
    assert summary["bytes_written"] > 0
    assert 0 < summary["frames"] <= summary["frames_asked"]
    assert summary["seconds_per_frame"] == pytest.approx(summary["video_seconds"] / summary["frames"], abs=1e-3)
    report = json.loads((indexed.store / "runs" / f"{summary['run_id']}.json").read_text())
    codes = {row["name"]: row["error_code"] for row in report["errors"]}
    assert codes.keys() == {"text.mp4", "empty.mp4", "cut.mp4"}
    assert codes["text.mp4"] == "not_a_video"
    assert codes["empty.mp4"] == "empty_file"
    assert "Traceback" not in indexed.first.stdout + indexed.first.stderr


def test_second_run_does_nothing_and_says_so(indexed: Indexed) -> None:
    again = job("index", *indexed.options, code=3)  # most of the corpus is missing, as the night before
    summary = last_json(again)
    assert (summary["done"], summary["failed"], summary["skipped"], summary["failed_before"]) == (0, 0, 2, 3)
    assert "nothing to do" in again.stdout
    assert "--retry-errors tries them again" in again.stdout
    for code in ("not_a_video", "empty_file"):
        assert code in again.stdout


def test_phases_before_the_first_video_are_named_as_they_begin(indexed: Indexed) -> None:
    lines = indexed.first.stdout.splitlines()
    phases = ("opening the model", "listing the videos", "reading the catalog", "starting Ray", "loading the model")
    begun = [next(number for number, line in enumerate(lines) if line.startswith(phase)) for phase in phases]
    assert begun == sorted(begun)


def test_the_run_record_holds_what_was_run_with_what(indexed: Indexed) -> None:
    summary = last_json(indexed.first)
    record = json.loads((indexed.store / "runs" / f"{summary['run_id']}.json").read_text())
    counts = ("total", "done", "skipped", "failed", "failed_before", "left", "bytes_written", "retained_ratio")
    assert [record[name] for name in counts] == [summary[name] for name in counts]
    assert record["status"] == "finished"
    assert record["command"][-len(indexed.options) :] == indexed.options
    assert record["settings"]["model"]["path"] == indexed.options[-1].partition("=")[2]
    assert (record["corpus"], record["store"]) == (str(indexed.corpus), str(indexed.store))
    assert record["started_at"] < record["updated_at"]
    assert list((indexed.store / "heartbeats").iterdir()) == []


def test_dry_run_of_another_recipe_plans_everything_and_writes_nothing(indexed: Indexed) -> None:
    before = sorted(indexed.store.rglob("*"))
    plan = job("index", *indexed.options, "--set", "merge.budget=0.5", "--dry-run")
    assert last_json(plan)["to_index"] == 5
    assert sorted(indexed.store.rglob("*")) == before


def test_dry_run_forecasts_the_cost_by_what_was_measured(indexed: Indexed) -> None:
    said = last_json(job("index", *indexed.options, "--set", "video.fps=1.0", "--dry-run"))
    assert said["measured_on"] == {"videos": 2, "device": "cpu", "differs": ["video.fps is 2.0, asked for 1.0"]}
    expected, rows = said["forecast"], Store.open(indexed.store).catalog.rows()
    assert expected["video_hours_known"] * 3600 == pytest.approx(24, abs=0.1)
    assert expected["video_hours"] > expected["video_hours_known"]
    assert 0 < expected["tokens_before"] < 1.5 * sum(row.tokens_before for row in rows)
    assert expected["tokens_after"] == pytest.approx(0.3 * expected["tokens_before"], rel=0.02)
    assert expected["gigabytes"] > 0
    assert expected["gpu_hours"] > 0


@pytest.mark.parametrize("by", ["name", "uri", "id"])
def test_ask_finds_the_video_by_name_uri_and_id(indexed: Indexed, by: str) -> None:
    row = Store.open(str(indexed.store)).find("good.mp4")
    video = {"name": row.name, "uri": row.uri, "id": row.video_id}[by]
    line = last_json(
        job("ask", "--store", str(indexed.store), "--video", video, "What?", "--json", "--set", "sampling.max_tokens=4")
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


def test_settings_that_fit_no_video_end_the_job_with_their_own_message(
    corpus: Path, tmp_path: Path, qwen2_vl_folder: Path
) -> None:
    options = ["--corpus", str(corpus), "--store", str(tmp_path / "store"), "--set", f"model.path={qwen2_vl_folder}"]
    done = job("index", *options, "--set", "merge.head_dim=7", code=1)
    assert "merge.head_dim=7 does not divide" in done.stderr
    assert "starting Ray" not in done.stdout, "it is known before"
    assert "Traceback" not in done.stderr


def test_ask_refuses_a_model_that_did_not_make_the_cache(indexed: Indexed, tmp_path: Path) -> None:
    from checkpoints import write_qwen2_vl

    other = write_qwen2_vl(tmp_path / "other", seed=1)
    done = job(
        "ask", "--store", str(indexed.store), "--video", "good.mp4", "Why?", "--set", f"model.path={other}", code=1
    )
    assert "its weights differ" in done.stderr


@pytest.mark.slow
def test_index_ask_verify_and_gc_on_a_real_s3_server(corpus: Path, qwen2_vl_folder: Path, s3_server: S3Server) -> None:
    store = s3_server.new_root()
    options = ["--corpus", str(corpus), "--store", store, "--set", f"model.path={qwen2_vl_folder}"]
    first = last_json(on_ray("index", *options, code=3))
    assert (first["done"], first["failed"]) == (2, 3)
    assert last_json(job("index", *options, code=3))["skipped"] == 2
    answer = last_json(
        job("ask", "--store", store, "--video", "av1.mp4", "What?", "--json", "--set", "sampling.max_tokens=4")
    )
    assert answer["kv_tokens"] > 0
    assert "as it was committed" in job("store", "verify", "--store", store).stdout
    job("store", "gc", "--store", store, "--min-age-hours", "0", "--delete")
    assert "as it was committed" in job("store", "verify", "--store", store).stdout
    job("store", "rm", "av1.mp4", "--store", store, "--yes")
    assert "no video" in job("ask", "--store", store, "--video", "av1.mp4", "What?", code=1).stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_changed_videos_are_superseded_and_deleted_ones_reported(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    corpus, store = tmp_path / "corpus", str(tmp_path / "store")
    corpus.mkdir()
    for number in range(3):
        (corpus / f"v{number}.mp4").write_bytes(encode_video(count=20 + number))
    options = ["--corpus", str(corpus), "--store", store, "--set", f"model.path={qwen2_vl_folder}"]
    settings = ["--set", f"model.path={qwen2_vl_folder}"]
    on_ray("index", *options)
    (old,) = [row for row in listed(store) if row["name"] == "v0.mp4"]

    (corpus / "v0.mp4").write_bytes(encode_video(count=30))
    (corpus / "v1.mp4").unlink()
    assert {row["name"]: row["source"] for row in listed(store, "--sources")} == {
        "v0.mp4": "changed",
        "v1.mp4": "gone",
        "v2.mp4": "there",
    }
    assert "content is" in job("explain", str(corpus / "v0.mp4"), "--store", store, *settings, code=1).stdout
    # Under another recipe: the old content must count under none.
    again = last_json(on_ray("index", *options, "--set", "merge.budget=0.5"))
    assert (again["total"], again["done"]) == (2, 2)

    rows = {(row["name"], row["status"]): row for row in listed(store, "--sources") if row["name"] != "v2.mp4"}
    assert {name: row["source"] for name, row in rows.items()} == {
        ("v0.mp4", "superseded"): "changed",
        ("v0.mp4", "ok"): "there",
        ("v1.mp4", "ok"): "gone",
    }
    new = rows["v0.mp4", "ok"]["identity"]
    assert rows["v0.mp4", "superseded"]["superseded_by"] == new
    counts = last_json(job("store", "stat", "--store", store))
    assert (counts["videos"], counts["artifacts"], counts["superseded"]) == (3, 4, 1)
    assert f"superseded: {old['identity'][:12]}" in explained(store, corpus / "v0.mp4", settings)
    assert "still answers questions" in explained(store, corpus / "v1.mp4", settings)
    (tmp_path / "night.csv").write_text(f"uri\n{corpus / 'v1.mp4'}\n")
    on_ray("index", "--corpus", str(tmp_path / "night.csv"), "--store", store, *settings, code=3)
    assert "still answers questions" in explained(store, corpus / "v1.mp4", settings), "an error must not hide it"
    answer = job("ask", "--store", store, "--video", "v0.mp4", "What?", "--json", "--set", "sampling.max_tokens=1")
    assert last_json(answer)["identity"] == new

    job("store", "gc", "--store", store, "--min-age-hours", "0", "--delete")
    assert old["identity"] not in {row["identity"] for row in listed(store)}
    assert not Store.open(store).has(old["identity"])
    assert {row["name"] for row in listed(store)} == {"v0.mp4", "v1.mp4", "v2.mp4"}
    assert "as it was committed" in job("store", "verify", "--store", store).stdout


def listed(store: str, *options: str) -> list[dict[str, Any]]:
    """What `jobs.store ls` says."""
    return list(map(json.loads, job("store", "ls", "--store", store, "--json", *options).stdout.splitlines()))


def explained(store: str, video: Path, settings: list[str]) -> str:
    """What `jobs.explain` says, whether or not it is a hit."""
    command = [sys.executable, "-m", "jobs.explain", str(video), "--store", store, *settings]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240).stdout


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_named_at_once(address: str) -> None:
    with pytest.raises(SttmError, match=f"no Ray cluster answers at {address} .*check --address"), start_ray(address):
        pass
