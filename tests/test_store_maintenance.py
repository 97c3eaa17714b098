"""Looking after a store never costs a reader anything."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from store_samples import make_cache, make_tokens, publish, recipe_for, source_for

from sttm.errors import StoreError
from sttm.store import maintenance
from sttm.store.artifact import manifest_key, utc_now
from sttm.store.facts import Facts
from sttm.store.key import source_key
from sttm.store.kv.file import encode_kv
from sttm.store.maintenance import collect_garbage, count, find_garbage, remove, superseded, verify
from sttm.store.requantise import requantise
from sttm.store.store import Store

NOW = timedelta(0)
SAID = {"kv_scheme": "int8", "kv_scheme_below": None}  # in the recipe of what was converted


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    return Store.open(url, create=True)


def republish(store: Store, name: str, content: str) -> str:
    """Index a changed file of the same video."""
    cache = make_cache(seed=7)
    facts = Facts(210, 63)
    row = store.publish(recipe_for(), content, source_for(name), encode_kv(cache, "int8"), make_tokens(cache), facts)
    store.catalog.append([row])
    return row.identity


def test_a_sound_store_has_no_problems_and_no_garbage(store: Store) -> None:
    for name in ("a", "b"):
        publish(store, name)
    store.catalog.compact()
    assert list(verify(store)) == []
    found = find_garbage(store)
    assert found.artifacts == found.objects == ()


def test_verify_names_each_damaged_or_lost_file(store: Store) -> None:
    rows = {name: publish(store, name) for name in ("a", "b", "c", "d", "e")}
    manifests = {name: store.manifest(row.identity) for name, row in rows.items()}
    for key in (manifests["a"].kv.key, manifests["b"].tokens.key, manifest_key(rows["c"].identity)):
        data = bytearray(store.storage.read(key))
        data[-1] ^= 1
        store.storage.put(key, data)
    store.storage.delete(manifests["d"].tokens.key)
    store.storage.delete(manifest_key(rows["e"].identity))
    messages = {problem.identity: problem.message for problem in verify(store)}
    assert set(messages) == {row.identity for row in rows.values()}
    assert all(
        "`python -m jobs.store rm` and index the video again" in messages[rows[name].identity] for name in "abce"
    )
    assert f"{manifests['a'].kv.key}, layer 4" in messages[rows["a"].identity]
    assert manifests["b"].tokens.key in messages[rows["b"].identity]
    assert manifest_key(rows["c"].identity) in messages[rows["c"].identity]
    assert "tokens.parquet does not exist" in messages[rows["d"].identity]
    assert "video e has a row but no artifact" in messages[rows["e"].identity]


def test_verify_names_every_video_of_a_damaged_artifact(store: Store) -> None:
    row = publish(store, "a")
    store.catalog.append([store.row_for(row.identity, source_for("copy"))])
    store.storage.put(store.manifest(row.identity).tokens.key, b"short")
    assert [problem.videos for problem in verify(store)] == [("a", "copy")]


def test_verify_beside_an_index_job_raises_no_alarm(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "a")
    real = maintenance.committed
    monkeypatch.setattr(maintenance, "committed", lambda storage: (real(storage), publish(store, "b"))[0])
    assert list(verify(store)) == []
    assert len(real(store.storage)) == 2


def test_verify_tells_of_a_lost_row_and_a_damaged_catalog(store: Store) -> None:
    row = publish(store)
    key = store.catalog.log.newest().tail[0].key
    whole = store.storage.read(key)
    store.storage.put(key, whole[:-1])
    assert [p.message.startswith("catalog: ") for p in verify(store)] == [True]
    for key in store.storage.keys("catalog"):
        store.storage.delete(key)
    assert [(p.identity, "without a row" in p.message) for p in verify(store)] == [(row.identity, True)]


def test_count_adds_up_what_the_catalog_names(store: Store) -> None:
    rows = [publish(store, "a"), publish(store, "b"), publish(store, "b", "exact")]
    counts = count(store)
    assert (counts.videos, counts.artifacts, counts.errors) == (2, 3, 0)
    assert counts.kv_bytes == sum(row.kv_bytes for row in rows)
    assert counts.tokens_after == 3 * 63
    assert sorted(counts.recipes.values()) == [1, 2]


def test_garbage_is_what_was_replaced_and_what_was_never_committed(store: Store) -> None:
    old = publish(store, "a").identity
    other = publish(store, "b").identity
    new = republish(store, "a", "changed")
    store.storage.put(f"kv/{'0' * 2}/{'0' * 64}/attempt/kv.safetensors", b"orphan")
    store.storage.put("tmp/killed", b"half")

    assert find_garbage(store).objects == (), "all of it is younger than a day"
    garbage = find_garbage(store, NOW)
    assert garbage.artifacts == (old,)
    assert garbage.size_bytes > 6
    assert store.has(old), "finding changes nothing"
    collect_garbage(store, garbage)
    assert not store.has(old)
    for identity in (other, new):
        store.load_kv(identity)
        store.load_tokens(identity)
    assert store.find("a").identity == new
    assert list(verify(store)) == []
    assert len(store.storage.keys("kv")) == 4
    assert store.storage.keys("tmp") == []
    assert store.catalog.repair() == []
    assert find_garbage(store, NOW).artifacts == ()


def test_a_superseded_artifact_is_counted_until_it_is_collected_or_its_video_removed(store: Store) -> None:
    for name in ("a", "b"):
        publish(store, name, "exact")
        republish(store, name, f"changed {name}")
    assert [(s.row.video_id, s.by.identity) for s in superseded(store)] == [
        (name, store.find(name).identity) for name in ("a", "b")
    ]
    assert (count(store).artifacts, count(store).superseded) == (2, 2)
    assert count(store).superseded_bytes > 0
    remove(store, "a")
    assert [s.row.video_id for s in superseded(store)] == ["b"]
    assert len(store.storage.keys("commit")) == 2, "nothing of the removed video is left"
    assert store.catalog.repair() == []
    collect_garbage(store, find_garbage(store, NOW))
    assert superseded(store) == []
    assert (count(store).artifacts, count(store).superseded, count(store).superseded_bytes) == (1, 0, 0)


def test_garbage_collection_can_be_killed_and_repeated(store: Store) -> None:
    publish(store, "a")
    new = republish(store, "a", "changed")
    objects = find_garbage(store, NOW).objects
    for done in range(len(objects)):
        store.storage.delete(objects[done].key)
        store.load_kv(new)
        assert list(verify(store)) == []
    assert find_garbage(store, NOW).objects == ()


def test_files_of_a_damaged_manifest_are_not_garbage(store: Store) -> None:
    row = publish(store)
    store.storage.put(manifest_key(row.identity), b"{}")
    assert not [entry for entry in find_garbage(store, NOW).objects if entry.key.startswith(("kv", "commit"))]


def test_an_artifact_shared_by_two_videos_outlives_one_of_them(store: Store) -> None:
    row = publish(store, "a")
    store.catalog.append([store.row_for(row.identity, source_for("copy"))])
    remove(store, "a")
    collect_garbage(store, find_garbage(store, NOW))
    store.load_kv(store.find("copy").identity)
    remove(store, "copy")
    assert not store.has(row.identity)


def test_a_removed_video_is_gone_under_every_recipe_and_can_come_back(store: Store) -> None:
    rows = [publish(store, "a"), publish(store, "a", "exact")]
    assert set(remove(store, "a.mp4").deleted) == {row.identity for row in rows}
    assert store.storage.keys("kv") == store.storage.keys("commit") == []
    assert store.catalog.repair() == []
    with pytest.raises(StoreError, match="no video 'a'"):
        store.find("a")
    assert publish(store, "a") == store.find("a")


def test_a_removed_video_takes_what_a_killed_run_committed_with_it(store: Store) -> None:
    listed, cache = publish(store, "a"), make_cache()
    kv, facts = encode_kv(cache, "exact"), Facts(210, 63)
    lost = store.publish(recipe_for("exact"), "content of a", source_for("a"), kv, make_tokens(cache), facts)
    assert remove(store, "a").deleted == tuple(sorted((listed.identity, lost.identity)))
    assert store.storage.keys("kv") == store.storage.keys("commit") == store.catalog.repair() == []


def test_a_removed_video_stays_away_though_its_file_is_missing_every_night(store: Store) -> None:
    row = publish(store, "a")
    for _ in range(2):
        gone = replace(row, status="error", identity="", error_code="missing", source_key="", created_at=utc_now())
        store.catalog.append([gone])
        if store.has(row.identity):
            assert store.find("a") == row
            remove(store, "a")
    store.catalog.compact()
    with pytest.raises(StoreError, match="indexing 'a' failed: missing"):
        store.find("a")


def test_a_video_that_another_process_removes_meanwhile_is_no_video(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "a")
    monkeypatch.setattr(store.catalog, "repair", lambda: remove(Store(store.storage), "a"))
    with pytest.raises(StoreError, match="no video 'a'"):
        remove(store, "a")


def test_what_others_left_in_the_store_stops_no_collection(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), create=True)
    publish(store, "a")
    publish(store, "b")
    newest = max((tmp_path / "catalog" / "log").iterdir())
    (tmp_path / "catalog" / "log" / f"{newest.name}.bak").write_bytes(newest.read_bytes())
    (tmp_path / "kv" / ".DS_Store").write_bytes(b"not ours")
    rows, garbage = store.catalog.rows(), find_garbage(store, NOW)
    assert [entry.key for entry in garbage.objects] == ["catalog/log/00000000000000000001.json"]
    collect_garbage(store, garbage)
    assert store.catalog.rows() == rows


def test_a_copy_is_converted_for_itself_not_for_the_first_video_of_its_content(store: Store) -> None:
    exact = publish(store, "a", "exact")
    later = replace(source_for("copy"), version="etag-2")
    store.catalog.append([store.row_for(exact.identity, source) for source in (source_for("copy"), later)])
    remove(store, "a")
    store.catalog.append([requantise(store, store.find("copy"), "int8")])
    assert {row.video_id for row in store.catalog.rows()} == {"copy"}
    assert store.catalog.repair() == []
    same = requantise(store, replace(exact, video_id="same", uri=exact.uri), "int8")
    assert same.source_key == source_key(exact.uri, 1000, "etag-1", recipe_for("int8") | {"store": SAID})


def test_a_converted_artifact_is_the_one_a_fresh_index_would_give(store: Store) -> None:
    fresh = store.load_kv(publish(store, "a", "int8").identity)
    for entry in store.storage.entries("kv") + store.storage.entries("commit") + store.storage.entries("catalog"):
        store.storage.delete(entry.key)
    exact = publish(store, "a", "exact")
    row = requantise(store, exact, "int8")
    store.catalog.append([row])
    converted = store.load_kv(row.identity)
    pairs = zip(fresh.keys + fresh.values, converted.keys + converted.values, strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert row.kv_bytes < exact.kv_bytes
    assert store.manifest(row.identity).facts.converted_from == exact.identity
    with pytest.raises(StoreError, match="stored as int8; only an exact one"):
        requantise(store, row, "int4")
