"""Recipes of a store: told apart by what people know of them, and chosen by the beginning of their digest."""

import subprocess
import sys
from pathlib import Path

import pytest
from store_samples import publish

from sttm.errors import StoreError
from sttm.store.artifact import manifest_key
from sttm.store.key import recipe_digest
from sttm.store.recipes import choose_recipe, stored_recipes
from sttm.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two videos as int8, and one of them also as int4, made last."""
    store = Store.open(tmp_path / "store", create=True)
    publish(store, "a")
    publish(store, "b")
    publish(store, "a", "int4")
    return store


def test_each_recipe_is_listed_once_newest_first_with_its_videos_and_bytes(store: Store) -> None:
    int4, int8 = stored_recipes(store)
    assert (int4.kv_scheme, int4.videos, int8.kv_scheme, int8.videos) == ("int4", 1, "int8", 2)
    assert int4.digest == recipe_digest(store.manifest(store.find("a").identity).recipe)
    assert int4.name == int4.digest[:12]
    assert (int4.model_name, int4.kept, str(int4)) == ("tiny", "30 %", "30 %, int4, tiny")
    rows = [row for row in store.catalog.rows() if row.recipe_digest == int8.digest]
    assert int8.size_bytes == sum(row.kv_bytes + row.tokens_bytes for row in rows)
    assert int8.created_at == max(row.created_at for row in rows)


def test_without_a_prefix_the_newest_recipe_is_taken_and_one_line_says_so(store: Store) -> None:
    chosen = choose_recipe(store, None)
    assert chosen.recipe.kv_scheme == "int4"
    assert [other.kv_scheme for other in chosen.others] == ["int8"]
    assert chosen.notice == (
        f"2 recipes in this store: taking the newest, {chosen.digest[:12]} (30 %, int4, tiny); "
        "choose another with --recipe"
    )


def test_a_prefix_chooses_a_recipe_without_a_notice(store: Store) -> None:
    int8 = stored_recipes(store)[1]
    for prefix in (int8.digest, int8.name, int8.name.upper(), int8.digest[:4]):
        chosen = choose_recipe(store, prefix)
        assert (chosen.digest, chosen.notice) == (int8.digest, None)
        assert store.find("a", chosen.digest).recipe_digest == int8.digest


def test_an_unknown_prefix_is_refused_with_the_recipes_there_are(store: Store) -> None:
    int4, int8 = stored_recipes(store)
    for prefix in ("nothing", ""):
        with pytest.raises(StoreError, match=f"{int4.name} .30 %, int4, tiny.; {int8.name} .30 %, int8, tiny."):
            choose_recipe(store, prefix)


def test_an_ambiguous_prefix_is_refused_with_the_recipes_it_fits(store: Store) -> None:
    for number in range(17):  # 19 digests begin with 16 different digits at most
        publish(store, "a", budget=0.5 + number / 100)
    first = [recipe.digest[0] for recipe in stored_recipes(store)]
    digit = max(first, key=first.count)
    with pytest.raises(StoreError, match=f"is the beginning of {first.count(digit)} recipes"):
        choose_recipe(store, digit)


def test_a_store_of_one_recipe_needs_no_notice_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "one", create=True)
    with pytest.raises(StoreError, match="holds no indexed video"):
        choose_recipe(store, None)
    publish(store, "a")
    assert choose_recipe(store, None).notice is None


def test_only_recipes_of_the_video_asked_for_are_chosen_from(store: Store) -> None:
    assert choose_recipe(store, None, video="b").recipe.kv_scheme == "int8"
    assert str(choose_recipe(store, None, video="a").notice).startswith("2 recipes in this store: ")
    publish(store, "c", budget=0.5)
    assert str(choose_recipe(store, None, video="a").notice).startswith("2 recipes of a: taking the newest, ")
    int4 = choose_recipe(store, None, video="a").recipe
    with pytest.raises(StoreError, match=f"no recipe '{int4.name}' in .* for b; it has"):
        choose_recipe(store, int4.name, video="b")


def test_a_damaged_manifest_hides_no_recipe(store: Store) -> None:
    identity = store.find("b").identity
    store.storage.put(manifest_key(identity), b"damaged")
    assert str(stored_recipes(store)[1]) == "30 %, int8, tiny", "described by the other video's manifest"
    for row in store.catalog.rows():
        store.storage.put(manifest_key(row.identity), b"damaged")
    assert [recipe.kv_scheme for recipe in stored_recipes(store)] == [None, None]


def test_listing_recipes_imports_no_torch() -> None:
    code = "import sys, sttm.store.recipes; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
