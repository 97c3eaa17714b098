"""A catalog of many objects: the same answers as a plain list of rows, after every kill, flip, merge and expiry."""

import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from store_samples import publish
from test_store_catalog import row
from test_store_golden import GOLDEN

from sttm.errors import ArtifactError
from sttm.store.catalog import catalog as catalog_module
from sttm.store.catalog import generation, log
from sttm.store.catalog.arrow_rows import SCHEMA
from sttm.store.catalog.catalog import Catalog
from sttm.store.catalog.history import split_history
from sttm.store.catalog.row import CatalogRow
from sttm.store.catalog.view import CatalogView
from sttm.store.maintenance import find_garbage, verify
from sttm.store.recipes import choose_recipe
from sttm.store.sealed import seal
from sttm.store.storage import Storage
from sttm.store.store import Store


@pytest.fixture(autouse=True)
def small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows make many parts, generations and shards."""
    monkeypatch.setattr(catalog_module, "MERGE_AT_PARTS", 4)
    monkeypatch.setattr(generation, "_ROWS_PER_SHARD", 4)
    monkeypatch.setattr(generation, "_NAMES_PER_SHARD", 8)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(Storage(str(tmp_path)))


def any_rows(draw: random.Random) -> list[CatalogRow]:
    """Some of the things that can be said of 40 videos, two of which have one file name."""
    rows = []
    for _ in range(draw.randint(1, 6)):
        number, content = draw.randrange(40), draw.choice("AB")
        status = draw.choice(["ok", "ok", "ok", "error", "removed"])
        said: dict[str, object] = {"identity": f"{number // 2}{content}", "content_digest": content}
        if status == "error":
            said = {"identity": "", "error_code": draw.choice(["missing", "bad"])}
        said |= {"recipe_digest": draw.choice("RS"), "source_key": f"{number}{content}", "run_id": str(draw.random())}
        rows.append(row(f"v{number}", status=status, name=f"name-{number // 2}.mp4", **said))
    return rows


def flip(catalog: Catalog, key: str, draw: random.Random) -> bytes:
    """Flip one bit of an object; returns the bytes before."""
    whole = catalog.storage.read(key)
    data = bytearray(whole)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    catalog.storage.put(key, data)
    return whole


def test_answers_are_those_of_a_plain_list_of_rows(catalog: Catalog) -> None:
    draw, history, most_generations = random.Random(0), list[CatalogRow](), 0
    for step in range(37):
        history += (rows := any_rows(draw))
        catalog.append(rows)
        most_generations = max(most_generations, len(catalog.log.newest().generations))
        if step % 9:
            continue
        reader = catalog.reader()
        counting, superseded = split_history(history)
        assert reader.rows() == [r for r in history if any(r is c for c in counting)]
        assert set(map(repr, reader.superseded())) == set(map(repr, superseded))
        for text in ("v7", "name-3.mp4", "s3://videos/v8.mp4", "nobody"):
            named = [r for r in history if text in (r.video_id, r.name, r.uri)]
            videos = {r.video_id for r in named}
            expected = [c for c in counting if c.video_id in videos]
            assert sorted(map(repr, reader.candidates(text))) == sorted(map(repr, expected))
        shared = {"3A", "4B", "19A"}
        assert reader.needed(shared) == shared & {c.identity for c in counting}
    assert most_generations > 1
    assert any(g.row_bits > 1 for g in catalog.log.newest().generations)


def test_the_newest_usable_rows_are_found_also_after_a_removal(catalog: Catalog) -> None:
    draw, history = random.Random(1), list[CatalogRow]()
    for _ in range(14):
        history += (rows := any_rows(draw))
        catalog.append(rows)
        usable = [r for r in split_history(history)[0] if r.status == "ok"]
        newest = {r.recipe_digest: r for r in sorted(usable, key=lambda r: [r is h for h in history].index(True))}
        assert catalog.reader().newest_usable() == newest


def test_rows_of_later_versions_are_told_apart_from_older_ones(catalog: Catalog) -> None:
    draw, seen, told = random.Random(2), 0, list[CatalogRow]()
    history: list[CatalogRow] = []
    for step in range(30):
        rows = [row(f"v{step}-{number}", run_id=str(draw.random())) for number in range(3)]
        history += rows
        catalog.append(rows)
        if step % 5 == 0:
            reader = catalog.reader()
            told += reader.added_since(seen, SCHEMA.names)
            seen = reader.snapshot.version
    assert told == history[: len(told)]
    assert len(told) == 26 * 3


def everything_of(catalog: Catalog) -> object:
    """What reads every object of the newest version."""
    return catalog.reader().names(), catalog.rows()


def test_every_flipped_bit_is_noticed(catalog: Catalog) -> None:
    draw = random.Random(3)
    for _ in range(15):
        catalog.append(any_rows(draw))
    catalog.compact()
    catalog.append(any_rows(draw))
    rows, snapshot = catalog.rows(), catalog.log.newest()
    keys = [catalog.log.entries()[-1].key, *(part.key for part in snapshot.tail)]
    keys += [key for g in snapshot.generations for key in catalog.storage.keys(g.folder)]
    for key in keys:
        whole = flip(catalog, key, draw)
        with pytest.raises(ArtifactError, match=r"is damaged: .*; delete the catalog folder"):
            everything_of(Catalog(catalog.storage))
        catalog.storage.put(key, whole)
    assert Catalog(catalog.storage).rows() == rows


def test_expired_versions_go_with_what_they_replaced(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT_FOR", timedelta(0))
    draw = random.Random(4)
    for _ in range(50):
        catalog.append(any_rows(draw))
    rows = catalog.rows()
    assert len(catalog.log.entries()) < 12, "of 50 versions and more"
    named = set().union(*(catalog.log.read(entry.key).places for entry in catalog.log.entries()))
    there = {key if key.count("/") == 2 else key.rpartition("/")[0] for key in catalog.storage.keys("catalog/parts")}
    assert len(there - named) < 20
    assert Catalog(catalog.storage).rows() == rows


KILLED_WRITERS = """
import os, signal, sys
from sttm.store.catalog import catalog as module
from sttm.store.catalog.catalog import Catalog
from sttm.store.catalog.row import CatalogRow
from sttm.store.storage import Storage
module.MERGE_AT_PARTS = 3
left = [0]

def dying(write):
    def wrapped(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, *arguments)
    return wrapped

for name in ("put", "create", "delete"):
    setattr(Storage, name, dying(getattr(Storage, name)))
for kill_at in range(1, 24):  # a new process each, in the same catalog
    child = os.fork()
    if child == 0:
        left[0], catalog = kill_at, Catalog(Storage(sys.argv[1]))
        for number in range(5):
            video = f"{kill_at}-{number}"
            catalog.append([CatalogRow(video, video, video, "ok", "recipe", "source")])
            print(video, flush=True)
        os._exit(0)
    print("killed" if os.waitpid(child, 0)[1] == signal.SIGKILL else "ended", flush=True)
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_what_was_appended_survives_a_kill_at_every_write(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if kind == "local" else request.getfixturevalue("s3_server").new_root()
    code = KILLED_WRITERS if kind == "local" else KILLED_WRITERS.replace("range(1, 24)", "(9, 11)")
    command = [sys.executable, "-c", code, url]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert "killed" in said
    appended = set(said) - {"killed", "ended"}
    catalog = Catalog(Storage(url))
    assert appended <= {r.video_id for r in catalog.rows()}
    assert all(catalog.find(video).video_id == video for video in sorted(appended)[::10])
    catalog.compact()
    assert appended <= {r.video_id for r in catalog.rows()}


def old_catalog(storage: Storage) -> list[CatalogRow]:
    """A catalog as the first programs wrote it: parts in a record, rows ordered by their clocks."""
    writer = Catalog(storage)
    rows = [row("a", 3), row("b", 1), row("a", 2), row("c", 4, recipe_digest="other")]
    parts = [writer._write_part([rows[n]], is_recovered=False) for n in range(4)]
    record = [{"key": p.key, "size_bytes": p.size_bytes, "digest": p.digest, "rows": p.rows} for p in parts]
    storage.put("catalog/log/00000000000000000007.json", seal({"parts": record, "nonce": "n"}))
    return [rows[1], rows[2], rows[0], rows[3]]


@pytest.mark.parametrize("carry_over", ["none", "compact", "append"])
def test_a_catalog_of_an_older_program_is_read_and_carried_over(catalog: Catalog, carry_over: str) -> None:
    history = old_catalog(catalog.storage)
    if carry_over == "compact":
        assert catalog.compact()
    if carry_over == "append":
        history.append(row("d", 0, created_at="1999"))
        catalog.append(history[-1:])
    assert catalog.log.newest().is_old == (carry_over == "none")
    assert catalog.history() == history
    assert catalog.rows() == split_history(history)[0]
    assert catalog.find("a.mp4").identity == "a-3"
    assert list(catalog.reader().newest_usable().values())[-1] == [r for r in history if r.status == "ok"][-1]


def test_the_golden_store_is_carried_over_without_a_change(tmp_path: Path) -> None:
    for path in (GOLDEN / "store").rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(GOLDEN / "store")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    store = Store.open(tmp_path)
    before = store.catalog.rows()
    assert store.catalog.compact()
    assert Store.open(tmp_path).catalog.rows() == before
    assert list(verify(store)) == []


@pytest.mark.parametrize("is_old", [False, True])
def test_a_reader_never_writes(catalog: Catalog, is_old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_old:
        old_catalog(catalog.storage)
    else:
        catalog.append([row("a", 3)])

    def refused(*_: object) -> None:
        raise AssertionError("a reader with read-only credentials")

    for name in ("put", "create", "delete"):
        monkeypatch.setattr(Storage, name, refused)
    assert catalog.find("a").identity == "a-3"
    view = CatalogView(catalog.storage, max_age_s=0)
    assert view.search("a", 0, 9)[1] >= 1
    assert view.rows() == catalog.rows()


def test_a_recovered_row_hides_no_row_that_was_there(tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    lost = publish(store, "a")
    for key in store.storage.keys("catalog"):
        store.storage.delete(key)
    newer = publish(store, "a", budget=0.5)
    changed = row("a", 9, recipe_digest=lost.recipe_digest, content_digest=newer.content_digest)
    store.catalog.append([changed])
    for _ in range(2):
        store.catalog.repair()
        assert store.find("a", lost.recipe_digest) == changed
        store.catalog.compact()
    assert {r.identity for r in store.catalog.history()} == {lost.identity, newer.identity, changed.identity}


def test_a_service_reads_nothing_again_for_one_new_row(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.append([row(f"v{number}") for number in range(300)])
    catalog.compact()
    view = CatalogView(catalog.storage, max_age_s=0)
    assert view.search("", 0, 5)[1] == 300
    catalog.append([row("new one")])
    reads: list[str] = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, key, *span: (reads.append(key), read(self, key, *span))[1])
    found, total = view.search("NEW", 0, 5)
    assert ([r.video_id for r in found], total) == (["new one"], 1)
    assert view.search("", 0, 2)[1] == 301
    assert view.find("new one.mp4").video_id == "new one"
    assert len(reads) < 20, f"the catalog has {len(catalog.storage.keys('catalog/parts'))} objects"


def test_garbage_is_found_without_a_read_for_each_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path, create=True)
    kept = [publish(store, f"v{number}") for number in range(6)]
    store.storage.put(f"kv/{kept[0].identity[:2]}/{kept[0].identity}/attempt/kv.safetensors", b"of a second writer")
    reads: list[str] = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, key, *span: (reads.append(key), read(self, key, *span))[1])
    garbage = find_garbage(store, timedelta(0))
    assert [e.key.rsplit("/", 2)[1:] for e in garbage.objects if e.key.startswith("kv")] == [
        ["attempt", "kv.safetensors"]
    ]
    assert sum(key.startswith("commit") for key in reads) == 1, "that of the artifact with two attempts"


def test_choosing_a_recipe_reads_one_manifest_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path, create=True)
    for number in range(5):
        publish(store, f"v{number}")
    publish(store, "v1", "int4")
    reads: list[str] = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, key, *span: (reads.append(key), read(self, key, *span))[1])
    assert [choose_recipe(store).recipe.kv_scheme] == ["int4"]
    assert sum(key.startswith("commit") for key in reads) == 2


def test_many_rows_appended_at_once_are_sorted_at_once(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MERGE_AT_ROWS", 20)
    catalog.append([row(f"v{number}") for number in range(19)])
    assert len(catalog.log.newest().tail) == 1
    catalog.append([row(f"w{number}") for number in range(50)])
    (only,) = catalog.log.newest().holders
    assert only in catalog.log.newest().generations
    assert not catalog.compact()
    assert len(catalog.rows()) == 69


def test_rows_are_added_even_if_the_tail_cannot_be_merged(catalog: Catalog) -> None:
    for number in range(3):
        catalog.append([row(f"v{number}")])
    catalog.storage.put(catalog.log.newest().tail[0].key, b"damaged")
    catalog.append([row("v3")])  # its writer has to merge
    assert [part.rows for part in catalog.log.newest().tail] == [1, 1, 1, 1]


def test_a_damaged_old_record_does_not_stop_an_append(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT_FOR", timedelta(0))
    for number in range(2):
        catalog.append([row(f"v{number}")])
    catalog.storage.put("catalog/log/00000000000000000001.json", b"damaged")
    for number in range(2, 9):
        catalog.append([row(f"v{number}")])
    assert len(catalog.rows()) == 9


def test_recovered_rows_do_not_become_the_newest(catalog: Catalog) -> None:
    catalog.append([row("v1", recipe_digest="A")])
    catalog.append([row("v2", recipe_digest="B")])
    catalog._append([row("lost", recipe_digest="A")], is_recovered=True)
    for _ in range(2):
        newest = catalog.reader().newest_usable()
        assert (list(newest), newest["A"].video_id) == (["A", "B"], "v1")
        catalog.compact()


def test_the_newest_of_a_recipe_is_found_behind_a_removed_one(catalog: Catalog) -> None:
    added = [row("v2", recipe_digest="A"), row("v8", recipe_digest="A"), row("v9", recipe_digest="A")]
    catalog.append(added)
    catalog.append([row("v2", number=1, recipe_digest="B")])
    catalog.append([row("v9", recipe_digest="A", status="removed")])
    assert catalog.reader().newest_usable()["A"].video_id == "v8"


def test_an_empty_catalog_of_an_old_program_can_be_appended_to(catalog: Catalog) -> None:
    catalog.storage.put("catalog/log/00000000000000000001.json", seal({"parts": []}))
    catalog.append([row("v1")])
    assert [r.video_id for r in catalog.rows()] == ["v1"]


@pytest.mark.parametrize("field", [{"replaced": ["commit"]}, {"row_bits": 99}], ids=repr)
def test_a_record_that_would_delete_or_number_anything_else_is_refused(catalog: Catalog, field: dict) -> None:
    body = {"generations": [], "tail": [], "replaced": field.get("replaced", [])}
    if "row_bits" in field:
        body["generations"] = [{"folder": "f", "digest": "d", "rows": 1, "last_version": 1, "last_usable": {}}]
        body["generations"][0] |= {"row_bits": 99, "name_bits": 0}
    catalog.storage.put("catalog/log/00000000000000000001.json", seal(body))
    with pytest.raises(ArtifactError, match="malformed"):
        catalog.log.newest()
