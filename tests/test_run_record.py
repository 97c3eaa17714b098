"""The record of a run, without Ray: what it keeps when the store is away, counts, and believes of other runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from store_samples import publish, recipe_for

from jobs.index import print_results
from jobs.indexing import run_record
from jobs.indexing.metrics import Pipeline
from jobs.indexing.plan import make_plan
from jobs.indexing.progress import Progress
from jobs.indexing.run_record import RunRecord
from sttm.corpus import VideoRef
from sttm.errors import StoreError
from sttm.store.key import recipe_digest
from sttm.store.storage import Data, Storage
from sttm.store.store import Store

STILL = Pipeline({}, (), ())


class ShakyStorage(Storage):
    """Takes nothing while it is away."""

    is_away = False

    def put(self, key: str, data: Data) -> None:
        if self.is_away:
            raise StoreError(f"cannot write {key}: the bucket is away")
        super().put(key, data)


def make(folder: Path, videos: int = 1000) -> RunRecord:
    """The record of the run `night`, of so many videos, in a new store."""
    Store.open(folder, create=True)
    return RunRecord(Store(ShakyStorage(str(folder))), recipe_for(), "night", videos, Progress(videos))


def fail(record: RunRecord, count: int) -> None:
    for number in range(count):
        record.failed(VideoRef.from_uri(f"s3://user:secret@bucket/{number}.mp4"), "missing", "it is not there")


def report(record: RunRecord) -> dict[str, Any]:
    return json.loads(record.store.storage.read("runs/night.json"))


@pytest.mark.parametrize(("code", "to_index"), [("lost", 1), ("missing", 0)])
def test_the_next_night_tries_what_an_outage_cost_again(tmp_path: Path, code: str, to_index: int) -> None:
    record, ref = make(tmp_path), VideoRef.from_uri("s3://bucket/a.mp4")
    record.failed(ref, code, "it was not there")
    record.end()
    plan = make_plan([ref], recipe_for(), record.store, retry_errors=False)
    assert (len(plan.todo), plan.known_bad) == (to_index, 1 - to_index)


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
    record.tick(STILL)
    assert "80 rows wait for the store: cannot write" in capsys.readouterr().err
    storage.is_away = False
    fail(record, 1)
    record.tick(STILL)
    assert len(record.store.catalog.history()) == 81
    fail(record, 1)
    storage.is_away = True
    with pytest.raises(StoreError, match="the bucket is away"):
        record.end()


def test_the_record_holds_all_errors_at_the_end_and_the_last_ones_before(tmp_path: Path, impatient: None) -> None:
    record = make(tmp_path)
    fail(record, 250)
    record.tick(STILL)
    running = report(record)
    assert (running["status"], running["failed"], len(running["errors"])) == ("running", 250, 100)
    assert running["errors"][-1]["uri"] == "s3://bucket/249.mp4"
    record.end()
    assert (report(record)["status"], len(report(record)["errors"])) == ("ended", 250)
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


def test_closing_table_prints_any_name_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make(tmp_path)
    record.failed(VideoRef.from_uri("s3://b/[/x]"), "missing", "[/x] is not there [bold]")
    print_results(record, {"run_id": "[/night]"})
    out = capsys.readouterr().out
    assert "[/night]" in out
    assert "[/x] is not there [bold]" in " ".join(out.split())


@pytest.mark.parametrize("data", [b"[]", b"{", b"\xff", b"null", b"[" * 200_000], ids=lambda data: repr(data[:9]))
def test_a_record_that_is_none_stops_no_run_and_hides_no_other(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "broken.json").write_bytes(data)
    live = {"run_id": "other", "status": "running", "recipe_digest": recipe_digest(recipe_for())}
    (tmp_path / "runs" / "other.json").write_text(json.dumps(live))
    record = make(tmp_path)
    assert record.others == ["other"]
    record.end()
    assert report(record)["status"] == "ended"
