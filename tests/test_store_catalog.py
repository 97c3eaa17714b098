"""The catalog: consistent snapshots, no lost rows, newest wins, rebuilt from manifests."""

import io
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_samples import make_cache, make_tokens, publish, recipe_for, source_for

from sttm.errors import ArtifactError, StoreError
from sttm.store.artifact import manifest_key
from sttm.store.catalog import arrow_rows
from sttm.store.catalog import catalog as catalog_module
from sttm.store.catalog.catalog import Catalog
from sttm.store.catalog.history import split_history, without_repeats
from sttm.store.catalog.reader import Reader
from sttm.store.catalog.row import CatalogRow
from sttm.store.facts import Facts
from sttm.store.kv.file import encode_kv
from sttm.store.maintenance import find_garbage, verify
from sttm.store.sealed import digest_of, read_sealed, seal
from sttm.store.storage import Storage
from sttm.store.store import Store


def row(video: str = "v1", number: int = 0, **changes: object) -> CatalogRow:
    fields = {
        "video_id": video,
        "uri": f"s3://videos/{video}.mp4",
        "name": f"{video}.mp4",
        "status": "ok",
        "recipe_digest": "recipe",
        "source_key": f"source of {video}",
        "identity": f"{video}-{number}",
        "thresholds": {"temporal": 0.5},
        "timings_s": {"decode": 1.5, "prefill": 0.25},
        "created_at": f"2026-01-01T00:00:{number:02d}.000000+00:00",
    }
    return CatalogRow(**{**fields, **changes})


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(Storage(str(tmp_path)))


def test_an_empty_catalog_has_no_rows(catalog: Catalog) -> None:
    assert catalog.rows() == []
    catalog.append([])
    assert catalog.log.newest().version == 0
    with pytest.raises(StoreError, match=r"no video 'x' in .*; it has 0 videos"):
        catalog.find("x")


def test_rows_come_back_as_they_were(catalog: Catalog) -> None:
    rows = [row("a", 1), row("b", 2, status="error", error_code="no_video_stream", error_message="ä", thresholds={})]
    catalog.append(rows[:1])
    catalog.append(rows[1:])
    assert Catalog(catalog.storage).rows() == rows


def test_the_newest_row_of_a_video_and_recipe_counts(catalog: Catalog) -> None:
    catalog.append([row("a", 3), row("a", 1), row("a", 2, recipe_digest="other")])
    assert [r.identity for r in catalog.rows()] == ["a-1", "a-2"], "added last counts, whatever clocks say"
    assert catalog.find("a").identity == "a-2"
    assert catalog.find("a", recipe_digest="other").identity == "a-2"


def test_an_error_never_hides_an_artifact_of_the_same_file(catalog: Catalog) -> None:
    error = row("a", 2, status="error", identity="", error_code="crash")
    catalog.append([row("a", 1), error])
    assert catalog.find("a").identity == "a-1"
    catalog.append([replace(error, source_key="a newer file", created_at="1999-01-01")])
    with pytest.raises(StoreError, match="indexing 'a' failed: crash"):
        catalog.find("a")


@pytest.mark.parametrize("code", ["missing", "unreadable", "lost"])
def test_an_artifact_outlives_its_file(catalog: Catalog, code: str) -> None:
    gone = row("a", 2, status="error", identity="", error_code=code, source_key="of size 0")
    catalog.append([row("a", 1), gone])
    assert catalog.find("a").identity == "a-1"
    assert split_history(catalog.history()) == ([row("a", 1)], [])


def test_find_takes_id_uri_or_name_and_explains_a_miss(catalog: Catalog) -> None:
    catalog.append([row("clip-one"), row("clip-two"), row("x", name="same.mp4"), row("y", name="same.mp4")])
    for text in ("clip-one", "s3://videos/clip-one.mp4", "clip-one.mp4"):
        assert catalog.find(text).video_id == "clip-one"
    with pytest.raises(StoreError, match=r"no video 'clip-onne' .*did you mean 'clip-one'"):
        catalog.find("clip-onne")
    with pytest.raises(StoreError, match=r"'same.mp4' is the name of 2 videos; use one of their ids: x, y"):
        catalog.find("same.mp4")


def test_a_removed_video_is_gone(catalog: Catalog) -> None:
    catalog.append([row("a", 1), row("a", 2, status="removed")])
    assert catalog.rows() == []


def test_a_changed_file_supersedes_its_artifacts_under_every_recipe(catalog: Catalog) -> None:
    old = [row("a", n, recipe_digest=f"r{n}", content_digest="old") for n in (1, 2)]
    other = row("b", 3, content_digest="of b")
    same = row("a", 4, recipe_digest="r3", content_digest="old")
    catalog.append([*old, other, same])
    assert catalog.rows() == [*old, other, same], "of one content there may be many artifacts"
    new = row("a", 5, recipe_digest="r1", content_digest="new")
    catalog.append([new])
    assert catalog.rows() == [other, new]
    with pytest.raises(StoreError, match="no video"):
        catalog.find("a", recipe_digest="r2")
    counting, superseded = split_history(catalog.history())
    assert counting == catalog.rows()
    assert [(s.row, s.by) for s in superseded] == [(old[0], new), (old[1], new), (same, new)]


def test_what_a_file_went_back_to_is_not_superseded(catalog: Catalog) -> None:
    contents = ["old", "new", "old"]
    catalog.append([row("a", n, identity=f"of {c}", content_digest=c) for n, c in enumerate(contents)])
    counting, superseded = split_history(catalog.history())
    assert [r.identity for r in counting] == ["of old"]
    assert [(s.row.identity, s.by.identity) for s in superseded] == [("of new", "of old")]


def test_rows_of_older_and_newer_programs_are_read(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [field for field in arrow_rows.SCHEMA if field.name not in ("content_digest", "duration_s")]
    monkeypatch.setattr(arrow_rows, "SCHEMA", pa.schema([*kept, pa.field("later", pa.string())]))
    monkeypatch.setattr(CatalogRow, "later", "a column of the future", raising=False)
    catalog.append([row("a", content_digest="x", source_bytes=5)])
    monkeypatch.undo()
    catalog.append([row("b", content_digest="y")])
    for _ in range(2):
        assert catalog.rows() == [row("a", source_bytes=5), row("b", content_digest="y")]
        assert catalog.find("a.mp4").source_bytes == 5
        catalog.compact()


def test_a_reader_of_an_old_snapshot_is_not_disturbed(catalog: Catalog) -> None:
    catalog.append([row("a", 1)])
    catalog.append([row("b", 1)])
    old = Reader(catalog.storage, catalog.log.newest())
    catalog.append([row("a", 2)])
    catalog.compact()
    assert [r.identity for r in old.history()] == ["a-1", "b-1"]


def test_compaction_changes_no_answer_and_happens_by_itself(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MERGE_AT_PARTS", 4)
    for number in range(7):
        catalog.append([row("a", number), row(f"b{number}", number)])
    assert len(catalog.log.newest().holders) <= 5
    before = catalog.rows()
    catalog.compact()
    assert len(catalog.log.newest().holders) == 1
    assert catalog.rows() == before
    assert {r.identity for r in catalog.history()} >= {f"a-{n}" for n in range(7)}, "repair must still know them"


def test_compaction_changes_no_answer_of_any_history() -> None:
    """What counts, what is superseded and by what, what is known; also once rows come before or after all others."""

    def answers(history: list[CatalogRow]) -> tuple[set[object], ...]:
        counting, superseded = split_history(history)
        return (
            {(r.recipe_digest, r.status, r.identity, r.error_code) for r in counting},
            {(s.row.identity, s.by.status, s.by.identity, s.by.error_code, s.by.created_at) for s in superseded},
            {r.identity for r in history},
        )

    for seed in range(3000):
        draw = random.Random(seed)
        history = [any_row(draw, number) for number in range(draw.randint(2, 7))]
        first, last = (any_row(draw, draw.uniform(0, 9)) for _ in range(2))
        kept = without_repeats(history)
        assert answers(kept) == answers(history), history
        assert answers([first, *kept, last]) == answers([first, *history, last]), [first, *history, last]


def any_row(draw: random.Random, time: float) -> CatalogRow:
    """One of the few things that can be said of a video, at a time from 0 to 9."""
    status, content, recipe = (
        draw.choice(["ok", "ok", "error", "error", "removed"]),
        draw.choice("AB"),
        draw.choice("RS"),
    )
    said: dict[str, object] = {"identity": content + recipe, "content_digest": content, "source_key": f"k{content}"}
    if status == "error":
        said = {
            "identity": "",
            "source_key": draw.choice(["kA", "kB", "k0"]),
            "error_code": draw.choice(["missing", "bad"]),
        }
    return row("v", status=status, recipe_digest=recipe, created_at=f"{time:.6f}", **said)


def test_repeats_are_forgotten(catalog: Catalog) -> None:
    errors = [row("a", n, status="error", identity="", error_code="missing", attempts=n) for n in range(1, 9)]
    for error in errors:
        catalog.append([error])
    catalog.compact()
    assert catalog.history() == [errors[0], errors[-1]], "the first and the last of equal rows"


def test_a_damaged_part_or_record_is_named(catalog: Catalog) -> None:
    catalog.append([row()])
    for key in (catalog.log.newest().tail[0].key, catalog.log.entries()[-1].key):
        data = bytearray(catalog.storage.read(key))
        data[len(data) // 2] ^= 4
        whole = catalog.storage.read(key)
        catalog.storage.put(key, data)
        with pytest.raises(ArtifactError, match=f"{key} is damaged: .*; delete the catalog folder; .*repair"):
            catalog.rows()
        catalog.storage.put(key, whole)


PART = {"key": "catalog/parts/x.parquet", "digest": "0", "size_bytes": 1, "rows": 1}


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"parts": 5}, {"parts": [5]}, {"parts": [{"key": "a"}]}, {"parts": [{**PART, "key": 5}]}),
        *({"parts": {"a": 1}}, {"generations": 5, "tail": [], "replaced": []}),
        *({"generations": [5], "tail": [], "replaced": []}, {"generations": [], "tail": [{"key": 5}], "replaced": []}),
    ],
)
def test_a_record_of_another_form_is_refused(catalog: Catalog, body: dict) -> None:
    catalog.storage.put("catalog/log/00000000000000000001.json", seal(body))
    with pytest.raises(ArtifactError, match=r"0001.json is malformed: .*; delete the catalog folder"):
        catalog.rows()


ONE = {field.name: pa.array([None], field.type) for field in arrow_rows.SCHEMA}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "Parquet"),
        (pa.table({"a": [1]}), '"video_id" does not exist'),
        (pa.table({"video_id": ["a"], "uri": ["u"]}), '"name" does not exist'),
        (pa.table(ONE), "a value of .* is missing"),
        (pa.table({**ONE, "kv_bytes": ["many"]}), "Failed to parse"),
    ],
)
def test_a_part_of_another_form_is_refused(catalog: Catalog, table: pa.Table | None, message: str) -> None:
    out = io.BytesIO()
    if table is not None:
        pq.write_table(table, out)
    catalog.storage.put(PART["key"], out.getvalue())
    record = seal({"parts": [{**PART, "digest": digest_of(out.getvalue())}]})
    catalog.storage.put("catalog/log/00000000000000000001.json", record)
    with pytest.raises(ArtifactError, match=f"x.parquet is damaged: .*{message}.*; delete the catalog folder"):
        catalog.rows()


def test_rows_are_never_written_where_no_reader_looks(catalog: Catalog) -> None:
    catalog.storage.put(f"catalog/log/{'9' * 20}.json", seal({"generations": [], "tail": [], "replaced": []}))
    with pytest.raises(ArtifactError, match="no reader would look for a version that high; delete the catalog"):
        catalog.append([row("a")])


WRITER = """
import sys
from sttm.store.catalog import catalog as module
from sttm.store.catalog.catalog import Catalog
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import Storage
module.MERGE_AT_PARTS = 3  # so that compactions race with appends, too
catalog = Catalog(Storage(sys.argv[1]))
for number in range(int(sys.argv[3])):
    video = f"{sys.argv[2]}-{number}"
    catalog.append([CatalogRow(video, video, video, "ok", "recipe", "source")])
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_rows_of_writers_in_many_processes_all_arrive(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if kind == "local" else request.getfixturevalue("s3_server").new_root()
    processes, count = (4, 12) if kind == "local" else (2, 6)
    arguments = [sys.executable, "-c", WRITER, url]
    writers = [subprocess.Popen([*arguments, f"w{number}", str(count)]) for number in range(processes)]
    assert [writer.wait() for writer in writers] == [0] * processes
    expected = {f"w{writer}-{number}" for writer in range(processes) for number in range(count)}
    assert {r.video_id for r in Catalog(Storage(url)).rows()} == expected


def test_rows_lost_with_their_driver_are_repaired_from_manifests(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), create=True)
    rows = [publish(store, name) for name in ("a", "b")]
    for key in store.storage.keys("catalog"):
        store.storage.delete(key)
    assert store.catalog.rows() == []
    assert sorted(store.catalog.repair(), key=lambda r: r.video_id) == rows
    assert store.find("b") == rows[1]
    assert store.catalog.repair() == []


def test_repair_does_not_bring_back_what_was_replaced(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), create=True)
    old = publish(store, "a")
    newer = replace(old, identity="f" * 64, created_at="9999")
    store.catalog.append([newer])
    store.catalog.compact()
    assert store.catalog.repair() == []
    assert store.find("a") == newer


def test_repair_steps_over_a_damaged_manifest(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), create=True)
    rows = [publish(store, name) for name in ("a", "b")]
    for key in store.storage.keys("catalog"):
        store.storage.delete(key)
    store.storage.put(f"commit/{rows[0].identity[:2]}/{rows[0].identity}.json", b"{}")
    assert store.catalog.repair() == rows[1:]


HOSTILE = {
    "empty": b"",
    "typed": seal({"format_version": 1, "facts": {"tokens_before": "x", "tokens_after": 1}}),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_one_bad_manifest_stops_neither_repair_nor_gc(
    data: bytes, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if kind == "local" else request.getfixturevalue("s3_server").new_root()
    store = Store.open(url, create=True)
    good = publish(store, "good")
    for key in store.storage.keys("catalog"):
        store.storage.delete(key)
    store.storage.put(f"commit/00/{'0' * 64}.json", data)
    assert store.catalog.repair() == [good]
    assert find_garbage(store).objects == ()
    assert [problem.identity for problem in verify(store)] == ["0" * 64]


def test_nonsense_in_the_notes_of_a_manifest_is_left_out_of_its_row(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), create=True)
    row = publish(store, "a")
    key = manifest_key(row.identity)
    body = read_sealed(store.storage, key, "")
    details = {"sampling": {"duration_s": "long", "decoder": "pyav"}, "certificate": [1], "provenance": "nobody"}
    store.storage.put(key, seal({**body, "facts": {**body["facts"], "details": details}}))
    for part in store.storage.keys("catalog"):
        store.storage.delete(part)
    (repaired,) = store.catalog.repair()
    assert (repaired.identity, repaired.duration_s, repaired.kl_mean) == (row.identity, 0.0, None)
    assert store.manifest(row.identity).facts.sampling.decoder == "pyav"


def test_a_name_that_is_not_utf_8_blocks_no_row(catalog: Catalog) -> None:
    name = os.fsdecode(b"a\xff.mp4")
    catalog.append([row("a", name=name, uri=f"file:///{name}", error_message=name, thresholds={name: 1.0}), row("b")])
    a, b = catalog.rows()
    assert (a.name, a.uri, a.thresholds, b) == (r"a\udcff.mp4", r"file:///a\udcff.mp4", {r"a\udcff.mp4": 1.0}, row("b"))


def test_a_store_with_a_committed_name_that_is_not_utf_8_is_repaired(tmp_path: Path) -> None:
    store, cache = Store.open(str(tmp_path), create=True), make_cache()
    source = replace(source_for("a"), name=os.fsdecode(b"a\xff.mp4"))
    lost = store.publish(recipe_for(), "c", source, encode_kv(cache, "int8"), make_tokens(cache), Facts(210, 63))
    assert store.catalog.repair() == [lost]
    assert store.find("a").source_key == lost.source_key, "it is skipped from then on"


def test_a_thousand_videos_are_listed_in_a_second(catalog: Catalog) -> None:
    """Of this process's own time: how long others keep it waiting says nothing about it."""
    for start in range(0, 1000, 50):
        catalog.append([row(f"v{number}", 1) for number in range(start, start + 50)])
    began = time.process_time()
    assert len(Catalog(catalog.storage).rows()) == 1000
    assert time.process_time() - began < 1
