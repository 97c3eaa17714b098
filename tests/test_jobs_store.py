"""`sttm store`: what each command prints, changes, and answers with as exit code."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from indexed import index_clips
from s3_server import S3Server
from store_samples import make_cache, make_tokens, publish, recipe_for, source_for

from jobs import store as commands
from jobs.explain import explain
from sttm.corpus.listing import list_corpus
from sttm.errors import StoreError
from sttm.index_plan import make_plan
from sttm.query.checkpoint import provenance_differences
from sttm.store.artifact import committed, manifest_key
from sttm.store.facts import Facts
from sttm.store.kv.file import encode_kv
from sttm.store.recipes import stored_recipes
from sttm.store.storage import Storage
from sttm.store.store import Store

LONG_ID = "a-long-name-" + "x" * 100


@pytest.fixture
def url(tmp_path: Path, qwen2_vl_folder: Path) -> str:
    """A store of two synthetic clips, kept exactly."""
    return index_clips(tmp_path, qwen2_vl_folder, count=2, scheme="exact")


def test_ls_and_stat_tell_what_is_there(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands.ls(url, as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["clip-0.mp4", "clip-1.mp4"]
    commands.stat(url)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["videos"], facts["errors"], facts["recipes"]) == (2, 0, 1)
    assert facts["kv_bytes"] == sum(row["kv_bytes"] for row in rows)
    assert facts["predicted_load_s"] > 0


@pytest.fixture
def two_recipes(tmp_path: Path) -> Store:
    """Two videos as int8, one of them, with a long id, as int4 too."""
    store = Store.open(tmp_path / "two", create=True)
    for name, scheme in (("a", "int8"), (LONG_ID, "int8"), (LONG_ID, "int4")):
        publish(store, name, scheme)
    return store


def test_ls_tells_recipes_apart_and_cuts_nothing_on_a_narrow_terminal(
    two_recipes: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    commands.ls(two_recipes.storage.url)
    lines = capsys.readouterr().out.splitlines()
    int4, int8 = stored_recipes(two_recipes)
    assert [sum(recipe.name in line for line in lines) for recipe in (int4, int8)] == [2, 3]
    assert sum(LONG_ID in line for line in lines) == 2
    (described,) = [line for line in lines if int8.name in line and "30 %" in line]
    assert all(text in described for text in ("tiny", "int8", " 2 ", f"{int8.size_bytes / 1e6:.1f} MB"))


def test_ls_gives_each_row_its_recipe_as_json(two_recipes: Store, capsys: pytest.CaptureFixture[str]) -> None:
    commands.ls(two_recipes.storage.url, as_json=True)
    recipes = [json.loads(line)["recipe"] for line in capsys.readouterr().out.splitlines()]
    assert [(r["kv_scheme"], r["budget"], r["videos"]) for r in recipes] == [("int8", 0.3, 2)] * 2 + [("int4", 0.3, 1)]
    assert {recipe["name"] for recipe in recipes} == {recipe.name for recipe in stored_recipes(two_recipes)}


def test_ls_of_an_empty_store_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(tmp_path, create=True)
    commands.ls(str(tmp_path))
    assert capsys.readouterr().out == f"no videos in {tmp_path}\n"


def test_looking_after_a_store_imports_no_torch() -> None:
    code = "import sys, jobs.store; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_verify_is_quiet_until_a_bit_flips(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.verify(url) == 0
    (path, *_) = sorted((Path(url) / "kv").rglob("kv.safetensors"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert commands.verify(url) == 1
    assert path.parent.parent.name[:12] in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["kv.safetensors", "tokens.parquet", "manifest", "no manifest"])
def test_what_verify_advises_gets_a_damaged_video_indexed_again(
    url: str, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, refs = Store.open(url), list_corpus(str(tmp_path / "corpus"))
    identity = store.find("clip-0.mp4").identity
    manifest = store.manifest(identity)
    key = manifest_key(identity)
    if damage == "no manifest":
        store.storage.delete(key)
    else:
        if damage != "manifest":
            key = next(file.key for file in (manifest.kv, manifest.tokens) if file.key.endswith(damage))
        data = bytearray(store.storage.read(key))
        data[len(data) // 2] ^= 1
        store.storage.put(key, data)
    assert commands.verify(url) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert "remove its video with `python -m jobs.store rm` and index the video again" in line
    assert make_plan(refs, manifest.recipe, store, retry_errors=False).stored == 2, "indexing alone would skip it"
    assert commands.rm(line.split()[0], url, yes=True) == 0
    assert [ref.name for ref in make_plan(refs, manifest.recipe, store, retry_errors=False).todo] == ["clip-0.mp4"]
    assert not store.has(identity)
    assert commands.verify(url) == 0


def test_rm_leaves_nothing_of_the_video(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    identity = Store.open(url).find("clip-0.mp4").identity
    assert commands.rm("clip-0.mp4", url, yes=True) == 0
    with pytest.raises(StoreError, match="no video"):
        Store.open(url).find("clip-0.mp4")
    assert not [p for p in Path(url).rglob("*") if p.is_file() and identity in str(p)]
    assert commands.verify(url) == 0
    assert "removed clip_0" in capsys.readouterr().out


def test_rm_without_a_terminal_removes_nothing_unless_told_to(two_recipes: Store) -> None:
    command = [sys.executable, "-m", "jobs.store", "rm", "a", "--store", two_recipes.storage.url]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "to remove a (a.mp4) with 1 artifact, " in done.stderr
    assert "give --yes" in done.stderr
    two_recipes.find("a")
    assert subprocess.run([*command, "--yes"], stdin=subprocess.DEVNULL).returncode == 0
    with pytest.raises(StoreError, match="no video"):
        two_recipes.find("a")


@pytest.mark.parametrize(("reply", "code"), [("n", 1), ("y", 0)])
def test_rm_at_a_terminal_asks_first(two_recipes: Store, reply: str, code: int) -> None:
    ours, theirs = os.openpty()
    os.write(ours, f"{reply}\n".encode())
    command = [sys.executable, "-m", "jobs.store", "rm", LONG_ID, "--store", two_recipes.storage.url]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True)
    assert done.returncode == code
    assert f"Remove {LONG_ID} ({LONG_ID}.mp4) with 2 artifacts" in done.stdout
    assert ("nothing was removed" in done.stdout) == (code == 1)
    assert (LONG_ID in {row.video_id for row in two_recipes.catalog.rows()}) == (code == 1)


def test_gc_deletes_only_when_told_to(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    orphan = Path(url) / "kv" / "ab" / ("ab" * 32) / "attempt" / "kv.safetensors"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"left by a killed writer")
    commands.gc(url, min_age_hours=0)
    assert orphan.exists()
    assert "would be deleted" in capsys.readouterr().out
    commands.gc(url, min_age_hours=0, delete=True)
    assert not orphan.exists()
    assert commands.verify(url) == 0


def test_requantised_artifact_is_the_one_found_from_then_on(url: str) -> None:
    exact = Store.open(url).find("clip-0.mp4")
    commands.requantise("clip-0.mp4", url, scheme="int8")
    store = Store.open(url)
    int8 = store.find("clip-0.mp4")
    assert int8.identity != exact.identity
    assert int8.kv_bytes < 0.5 * exact.kv_bytes
    before, after = store.load_kv(exact.identity), store.load_kv(int8.identity)
    commands.requantise("clip-0.mp4", url, scheme="int4")  # from the exact one, though it is not the newest
    newest = store.find("clip-0.mp4").identity
    assert store.manifest(newest).recipe["store"]["kv_scheme"] == "int4"
    assert (before.keys[-1] - after.keys[-1]).abs().max() < 0.05 * before.keys[-1].abs().max()
    with pytest.raises(StoreError, match="int3"):
        commands.requantise("clip-0.mp4", url, scheme="int3")


def test_requantise_brings_no_earlier_content_of_a_changed_video_back(tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    publish(store, "a", "exact")
    cache = make_cache(seed=1)
    kv, tokens = encode_kv(cache, "int8"), make_tokens(cache)
    changed = store.publish(recipe_for("int8"), "changed", source_for("a"), kv, tokens, Facts(210, 63))
    store.catalog.append([changed])
    with pytest.raises(StoreError, match="stored as int8; only an exact one"):
        commands.requantise("a", str(tmp_path), scheme="int4")
    assert store.find("a").identity == changed.identity


def test_exported_vectors_are_the_stored_ones(url: str, tmp_path: Path) -> None:
    commands.export("clip-0.mp4", str(tmp_path / "out.parquet"), url)
    table = pq.read_table(tmp_path / "out.parquet")
    store = Store.open(url)
    tokens = store.load_tokens(store.find("clip-0.mp4").identity)
    assert isinstance(table.schema.field("vector").type, pa.FixedShapeTensorType)
    vectors = table.column("vector").combine_chunks().to_numpy_ndarray()
    assert tokens.features is not None
    assert torch.equal(torch.from_numpy(vectors.copy()), tokens.features.to(torch.float16))
    assert table.column("patches").to_pylist() == tokens.patches.tolist()


def test_export_takes_the_newest_recipe_of_the_video_and_says_so(
    two_recipes: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, file = two_recipes.storage.url, str(tmp_path / "out.parquet")
    commands.export(LONG_ID, file, url)
    assert "2 recipes in this store: taking the newest, " in capsys.readouterr().err
    int4, int8 = stored_recipes(two_recipes)
    commands.export(LONG_ID, file, url, int8.name)
    commands.export("a", file, url)
    assert capsys.readouterr().err == ""
    with pytest.raises(StoreError, match=f"no recipe '{int4.name}'"):
        commands.export("a", file, url, int4.name)


def test_export_writes_wherever_a_store_can_be(two_recipes: Store, tmp_path: Path, s3_server: S3Server) -> None:
    url, local, remote = two_recipes.storage.url, tmp_path / "my out.parquet", f"{s3_server.new_root()}/out.parquet"
    commands.export("a", str(local), url)
    commands.export("a", remote, url)
    folder, _, name = remote.rpartition("/")
    assert Storage(folder).read(name) == local.read_bytes()
    for refused in (tmp_path / "no such folder" / "out.parquet", tmp_path, "gs://bucket/out.parquet"):
        with pytest.raises(StoreError, match=r"cannot (write|keep)"):
            commands.export("a", str(refused), url)


def test_compact_keeps_every_row(url: str) -> None:
    before = Store.open(url).catalog.rows()
    commands.compact(url)
    assert len(Store.open(url).catalog.log.newest().holders) == 1
    assert Store.open(url).catalog.rows() == before


def test_explain_names_hit_miss_and_the_field_that_differs(
    url: str, tmp_path: Path, qwen2_vl_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(tmp_path / "corpus" / "clip-0.mp4")
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"model: {{path: {qwen2_vl_folder}, dtype: float32}}\nvideo: {{fps: 2.0, max_frames: 8}}\n"
        "merge: {budget: 0.4}\nstore: {kv_scheme: exact}\n"
    )
    assert explain(clip, url, str(settings)) == 0
    assert Store.open(url).find("clip-0.mp4").identity in capsys.readouterr().out
    assert explain(clip, url, str(settings), ["merge.budget=0.5"]) == 1
    assert "merge.budget is 0.4, asked for 0.5" in capsys.readouterr().out
    Path(clip).write_bytes(Path(clip).read_bytes() + b"\0")
    assert explain(clip, url, str(settings)) == 1
    assert "this file's is" in capsys.readouterr().out
    other = tmp_path / "other.mp4"
    other.write_bytes(b"never seen")
    assert explain(str(other), url, str(settings)) == 1
    assert "holds nothing of this file" in capsys.readouterr().out


def test_planning_writes_nothing_even_where_rows_were_lost(url: str, tmp_path: Path) -> None:
    shutil.rmtree(Path(url) / "catalog")
    store, refs = Store.open(url), list_corpus(str(tmp_path / "corpus"))
    recipe = store.manifest(committed(store.storage)[0]).recipe
    before = sorted(Path(url).rglob("*"))
    assert len(make_plan(refs, recipe, store, retry_errors=False).todo) == 2
    assert sorted(Path(url).rglob("*")) == before
    store.catalog.repair()
    assert make_plan(refs, recipe, store, retry_errors=False).stored == 2


def test_other_library_versions_are_told_not_hidden(url: str) -> None:
    store = Store.open(url)
    manifest = store.manifest(store.find("clip-0.mp4").identity)
    assert provenance_differences(manifest) == []
    made = replace(manifest.facts.provenance, torch="2.0.0")
    older = replace(manifest, facts=replace(manifest.facts, provenance=made))
    assert provenance_differences(older) == [f"made with torch 2.0.0, read with {torch.__version__}"]
