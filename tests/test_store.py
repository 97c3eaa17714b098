"""The store as its users see it, in every kind of storage."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from store_samples import make_cache, make_tokens, publish, recipe_for, source_for

from sttm.errors import StoreError
from sttm.store.artifact import utc_now
from sttm.store.facts import Facts
from sttm.store.key import identity
from sttm.store.kv.file import encode_kv
from sttm.store.sealed import seal
from sttm.store.storage import Storage
from sttm.store.store import Store


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_server").new_root())
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"


def test_what_was_published_is_found_and_loaded(url: str) -> None:
    cache = make_cache()
    row = publish(Store.open(url, create=True), "clip", "exact", cache)

    store = Store.open(url)
    for text in ("clip", "clip.mp4", "file:///videos/clip.mp4"):
        assert store.find(text) == row
    loaded = store.load_kv(row.identity)
    for name, value in cache.__dict__.items():
        got = getattr(loaded, name)
        if isinstance(value, tuple) and isinstance(value[0], torch.Tensor):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(value, got, strict=True)), name
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, got), name
            assert value.dtype == got.dtype, name
        else:
            assert value == got, name
    assert row.retained_ratio == pytest.approx(0.3)
    tokens, survivors = store.load_tokens(row.identity), store.load_survivors(row.identity)
    assert tokens.features.shape == (63, 32)
    assert torch.equal(survivors.boxes, tokens.boxes)
    assert torch.equal(survivors.patches, tokens.patches)
    assert survivors.grid == tokens.grid


def test_an_artifact_is_published_once_and_the_first_counts(url: str) -> None:
    store = Store.open(url, create=True)
    first, second = publish(store), publish(store)
    assert first.identity == second.identity
    assert second.created_at > first.created_at
    assert len(store.storage.keys("kv")) == 2
    assert len(store.catalog.rows()) == 1


def test_the_same_content_at_two_places_is_stored_once_with_a_row_each(url: str) -> None:
    store = Store.open(url, create=True)
    row = publish(store, "clip")
    copy = store.row_for(row.identity, source_for("copy"))
    store.catalog.append([copy])
    assert store.find("copy").identity == store.find("clip").identity
    assert store.find("copy").uri == "file:///videos/copy.mp4"


def test_a_file_that_goes_back_to_an_earlier_content_is_found_with_it(url: str) -> None:
    store = Store.open(url, create=True)
    first = publish(store)
    changed = replace(first, identity="f" * 64, source_key="changed", created_at=utc_now())
    store.catalog.append([changed])
    assert store.find("clip") == changed
    store.catalog.append([store.row_for(first.identity, source_for())])
    assert store.find("clip").identity == first.identity


def test_has_tells_committed_from_not(url: str) -> None:
    store = Store.open(url, create=True)
    assert not store.has(identity(recipe_for(), "content of clip"))
    publish(store)
    assert store.has(identity(recipe_for(), "content of clip"))
    with pytest.raises(StoreError, match="not an artifact identity"):
        store.has("../../etc/passwd")


def test_a_missing_store_says_what_to_do(url: str) -> None:
    with pytest.raises(StoreError, match=r"no store at .*; index some videos"):
        Store.open(url)


def test_a_store_of_another_format_version_is_refused(url: str) -> None:
    Storage(url).put("format.json", seal({"format": "sttm-store", "version": 2}))
    with pytest.raises(StoreError, match="format version 2, this program reads 1"):
        Store.open(url, create=True)


def test_a_scheme_other_than_the_recipes_is_refused(url: str) -> None:
    cache, store = make_cache(), Store.open(url, create=True)
    with pytest.raises(ValueError, match="recipe says int8, the file is exact"):
        store.publish(recipe_for(), "c", source_for(), encode_kv(cache, "exact"), make_tokens(cache), Facts(1, 1))


def test_the_query_path_stays_light(tmp_path: Path) -> None:
    row = publish(Store.open(str(tmp_path), create=True))
    code = f"""
import sys
from sttm.store.store import Store
store = Store.open({str(tmp_path)!r})
row = store.find("clip")
assert "torch" not in sys.modules
store.load_kv(row.identity)
heavy = {{"pyarrow.dataset", "transformers", "ray", "decord", "av", "fsspec", "safetensors", "pandas", "torchvision"}}
print(sorted(heavy & set(sys.modules)), row.identity)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", row.identity]
