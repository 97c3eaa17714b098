"""The record of a run, without Ray: what it keeps when the store is away, counts, says at the end, and keeps secret."""

import json
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from store_samples import publish, recipe_for

from jobs.config import JobConfig
from jobs.indexing import heartbeat, run_record
from jobs.indexing.launch import Launch, redacted
from jobs.indexing.metrics import Pipeline
from jobs.indexing.results import exit_code, print_results
from jobs.indexing.run_record import RunRecord
from sttm.corpus.listing import VideoRef
from sttm.errors import StoreError
from sttm.index_plan import Plan, make_plan
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.catalog.row import CatalogRow
from sttm.store.key import recipe_digest
from sttm.store.storage import Data, Storage
from sttm.store.store import Store

STILL = Pipeline({}, (), ())


class ShakyStorage(Storage):
    """Takes nothing while it is away, and keeps writers of all but heartbeats waiting while it does not answer."""

    is_away = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers = threading.Event()
        self.answers.set()

    def put(self, key: str, data: Data) -> None:
        if not key.startswith("heartbeats/"):
            assert self.answers.wait(60)
        if self.is_away:
            raise StoreError(f"cannot write {key}: the bucket is away")
        super().put(key, data)


def launch(**changes: Any) -> Launch:
    """How a run was started that a test needs no more of."""
    started = Launch(["sttm", "index"], "/home", {}, "clips/", "store/", {}, "host", {}, "2026-01-01T00:00:00+00:00")
    return replace(started, **changes)


def make(folder: Path, videos: int = 1000, stored: int = 0, failed_before: int = 0, **started: Any) -> RunRecord:
    """The record of the run `night` in a new store; `videos` are to be indexed."""
    Store.open(folder, create=True)
    refs = [VideoRef.from_uri(f"s3://bucket/{number}.mp4") for number in range(videos)]
    earlier = tuple(error_row(number) for number in range(failed_before))
    plan = Plan(refs, stored, earlier)
    record = RunRecord(Store(ShakyStorage(str(folder))), recipe_for(), "night", plan, launch(**started))
    record.begin()
    return record


def error_row(number: int) -> CatalogRow:
    """The row of a video that failed in an earlier run."""
    return CatalogRow(
        video_id=f"old-{number}",
        uri=f"s3://bucket/old-{number}.mp4",
        name=f"old-{number}.mp4",
        status="error",
        recipe_digest=recipe_digest(recipe_for()),
        source_key="k",
        error_code="truncated",
        error_message=f"old-{number}.mp4 ends too early; " + "copy the whole file again " * 8,
    )


def fail(record: RunRecord, count: int) -> None:
    for number in range(count):
        record.failed(VideoRef.from_uri(f"s3://user:secret@bucket/{number}.mp4"), "missing", "it is not there")


def flush(record: RunRecord) -> None:
    """Write what has gathered."""
    record.tick(STILL)
    record.settle()


def report(record: RunRecord) -> dict[str, Any]:
    return json.loads(record.store.storage.read("runs/night.json"))


@pytest.mark.parametrize(("code", "to_index"), [("lost", 1), ("missing", 0)])
def test_the_next_night_tries_what_an_outage_cost_again(tmp_path: Path, code: str, to_index: int) -> None:
    record, ref = make(tmp_path), VideoRef.from_uri("s3://bucket/a.mp4")
    record.failed(ref, code, "it was not there")
    record.end("finished")
    plan = make_plan([ref], recipe_for(), record.store, retry_errors=False)
    assert (len(plan.todo), len(plan.failed_before)) == (to_index, 1 - to_index)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tick is time to write."""
    monkeypatch.setattr(run_record, "FLUSH_EVERY_S", 0.0)


def test_a_store_that_is_away_for_a_while_costs_no_row(
    tmp_path: Path, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make(tmp_path)
    storage = record.store.storage
    assert isinstance(storage, ShakyStorage)
    storage.is_away = True
    fail(record, 80)
    flush(record)
    assert "80 rows wait for the store: cannot write" in capsys.readouterr().err
    storage.is_away = False
    fail(record, 1)
    flush(record)
    assert len(record.store.catalog.history()) == 81
    fail(record, 1)
    storage.is_away = True
    with pytest.raises(StoreError, match="the bucket is away"):
        record.end("finished")


def test_a_store_that_hangs_holds_up_no_tick_and_the_run_still_shows_that_it_lives(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_S", 0.01)
    record = make(tmp_path)
    storage = record.store.storage
    assert isinstance(storage, ShakyStorage)
    storage.answers.clear()
    fail(record, 3)
    record.tick(STILL)
    beat = storage.read("heartbeats/night.json")
    fail(record, 2)
    for _ in range(5):
        record.tick(STILL)
    deadline = time.monotonic() + 30
    while storage.read("heartbeats/night.json") == beat:
        assert time.monotonic() < deadline
    assert record.store.catalog.history() == []
    storage.answers.set()
    record.end("finished")
    assert len(record.store.catalog.history()) == 5


def test_the_record_holds_all_errors_at_the_end_and_the_last_ones_before(tmp_path: Path, impatient: None) -> None:
    record = make(tmp_path)
    fail(record, 250)
    flush(record)
    running = report(record)
    assert (running["status"], running["failed"], len(running["errors"])) == ("running", 250, 100)
    assert running["errors"][-1]["uri"] == "s3://bucket/249.mp4"
    record.end("finished")
    assert (report(record)["status"], len(report(record)["errors"])) == ("finished", 250)
    assert "secret" not in json.dumps(report(record))


def test_content_that_is_stored_already_counts_as_skipped_not_as_written_again(tmp_path: Path) -> None:
    record = make(tmp_path, videos=4)
    row = publish(record.store)
    ref, written = VideoRef.from_uri("s3://bucket/other-name.mp4"), row.kv_bytes + row.tokens_bytes
    record.stored(ref, row)  # of another run
    assert (record.progress.done, record.progress.skipped, record.progress.bytes_written) == (0, 1, 0)
    record.run_id = row.run_id
    record.stored(ref, row)
    record.stored(ref, row)  # the same content under another name
    assert (record.progress.done, record.progress.skipped, record.progress.bytes_written) == (1, 2, written)
    assert record.progress.tokens_before == row.tokens_before
    assert record.summary()["left"] == 1


def test_every_video_counts_once_in_the_summary(tmp_path: Path) -> None:
    record = make(tmp_path, videos=4, stored=2, failed_before=3)
    fail(record, 1)
    summary = record.summary()
    counts = {name: summary[name] for name in ("done", "skipped", "failed", "failed_before", "left")}
    assert counts == {"done": 0, "skipped": 2, "failed": 1, "failed_before": 3, "left": 3}
    assert sum(counts.values()) == summary["total"] == 9


@pytest.mark.parametrize(
    ("videos", "failed", "stored", "failed_before", "expected"),
    [
        (0, 0, 3, 2, 0),
        (0, 0, 2, 3, 3),  # nothing to do, and yet most of the corpus is missing
        (4, 2, 0, 0, 0),
        (4, 3, 0, 0, 3),
        (4, 1, 0, 4, 3),
        (4, 3, 90, 0, 3),  # most of what was tried tonight failed, however much was stored before
    ],
)
def test_exit_code_tells_whether_too_many_videos_have_failed_now_or_before(
    tmp_path: Path, videos: int, failed: int, stored: int, failed_before: int, expected: int
) -> None:
    record = make(tmp_path, videos, stored, failed_before)
    fail(record, failed)
    assert exit_code(record, max_failed_share=0.5) == expected


def test_closing_table_prints_any_name_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make(tmp_path)
    record.failed(VideoRef.from_uri("s3://b/[/x]"), "missing", "[/x] is not there [bold]")
    print_results(record, was_stopped=False)
    assert "[/x] is not there [bold]" in " ".join(capsys.readouterr().out.split())


def test_what_failed_before_is_listed_with_its_cure_and_never_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    record = make(tmp_path, videos=0, stored=1, failed_before=2)
    print_results(record, was_stopped=False)
    out = capsys.readouterr().out
    assert "nothing to do" in out
    assert "--retry-errors tries them again" in out
    for row in record.plan.failed_before:
        assert f"{row.name} " in out
        assert all(word in out for word in row.error_message.split())
    assert json.loads(out.splitlines()[-1])["failed_before"] == 2


def test_a_stopped_run_says_what_is_stored_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(make(tmp_path, videos=7, stored=2), was_stopped=True)
    assert "2 videos are stored, 7 are left; the same command goes on" in capsys.readouterr().out


def test_the_record_tells_how_the_run_was_started_and_how_it_failed(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    settings = JobConfig(model=ModelConfig(path=str(qwen2_vl_folder), dtype="float32"))
    checkpoint = Checkpoint.open(settings.model)
    started = Launch.now(settings, "clips/", "store/", checkpoint)
    record = make(tmp_path, **{name: getattr(started, name) for name in ("settings", "model", "versions", "command")})
    record.end("failed", StoreError("the bucket is away"))
    found = report(record)
    assert (found["status"], found["error"]) == ("failed", "StoreError: the bucket is away")
    assert JobConfig.model_validate(found["settings"]) == settings
    assert found["model"]["digests"] == checkpoint.digests
    assert found["versions"]["torch"] == version("torch")
    assert set(found["versions"]) == {"python", "torch", "transformers", "ray", "sttm", "decord", "av"}
    assert found["command"] == sys.orig_argv


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:SECRET@bucket/a",
        "s3://KEY:SEC/SECRET@bucket/a",
        "https://host/a.mp4?X-Amz-Signature=SECRET",
        "https://host:8080/a b.mp4?token=SECRET more",
        "zip://a.zip::s3://user:SECRET@bucket/a.zip",
    ],
)
def test_no_secret_of_a_url_is_in_the_record(tmp_path: Path, url: str) -> None:
    command = ["sttm", "index", "--corpus", url, f"--store={url}", "--set", f"model.path={url}"]
    record = make(tmp_path, command=command, corpus=url, store=url, settings={"model": {"path": url.split(" ")[0]}})
    record.failed(VideoRef.from_uri(url.split(" ")[0]), "missing", f"cannot open {url.split(' ')[0]}: not there")
    record.end("failed", StoreError(f"cannot write {url.split(' ')[0]}"))
    text = record.store.storage.read("runs/night.json").decode()
    assert "SECRET" not in text
    assert report(record)["errors"][0]["error_message"].endswith("not there")


def test_what_is_no_secret_stays_in_the_record() -> None:
    kept = ["s3://bucket/a@2x.mp4", "/data/a.mp4", "merge.budget=0.5", "http://host:8080/a@b.mp4", "why? a: b@c"]
    assert redacted(kept) == kept
    assert redacted({"a": [1, None, True]}) == {"a": [1, None, True]}
