"""The catalog of a service: as fresh as promised, and the same rows as the catalog itself."""

from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import publish

from sttm.errors import StoreError
from sttm.store.catalog.catalog import Catalog
from sttm.store.catalog.lookup import UnknownVideoError
from sttm.store.catalog.row import CatalogRow
from sttm.store.catalog.view import CatalogView
from sttm.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path, create=True)
    for name in ("alpha", "beta", "gamma"):
        store.catalog.append([publish(store, name)])
    return store


def named(row: CatalogRow, name: str) -> CatalogRow:
    return replace(row, video_id=name, name=f"{name}.mp4", uri=f"file:///other/{name}.mp4")


def test_new_rows_are_seen_after_the_agreed_time_and_not_before(store: Store) -> None:
    lazy, eager = CatalogView(store.storage, max_age_s=float("inf")), CatalogView(store.storage, max_age_s=0)
    row = lazy.rows()[0]
    assert lazy.rows() == eager.rows() == store.catalog.rows()
    store.catalog.append([named(row, "delta")])
    assert "delta" not in [r.video_id for r in lazy.rows()]
    assert eager.find("delta").uri == "file:///other/delta.mp4"


def test_found_as_the_catalog_finds_it(store: Store) -> None:
    view, row = CatalogView(store.storage, max_age_s=0), store.catalog.rows()[1]
    for text in (row.video_id, row.uri, row.name):
        assert view.find(text) == store.find(text) == row
    with pytest.raises(UnknownVideoError, match="no video 'nothing'") as raised:
        view.find("nothing")
    assert store.storage.url not in str(raised.value)
    store.catalog.append([replace(named(row, "twin"), name=row.name)])
    with pytest.raises(UnknownVideoError, match="is the name of 2 videos"):
        view.find(row.name)


def test_a_store_that_is_lost_is_an_error_and_back_it_is_as_before(store: Store, tmp_path: Path) -> None:
    view = CatalogView(store.storage, max_age_s=0)
    rows = view.rows()
    away = tmp_path.rename(tmp_path.with_name("away"))
    for look in (view.rows, lambda: view.find(rows[0].video_id), lambda: view.search("", 0, 9)):
        with pytest.raises(StoreError, match="is the store still mounted") as raised:
            look()
        assert not isinstance(raised.value, UnknownVideoError)
    away.rename(tmp_path)
    assert view.find(rows[0].video_id) == rows[0]
    assert view.rows() == rows


def test_search_is_paged_newest_first_and_shows_usable_videos_only(store: Store) -> None:
    view = CatalogView(store.storage, max_age_s=0)
    assert [row.video_id for row in view.search("", 0, 2)[0]] == [row.video_id for row in view.rows()[:0:-1]]
    assert view.search("", 2, 2)[1] == 3
    found, total = view.search("BETA", 0, 9)
    assert total == len(found) == 1
    store.catalog.append([named(found[0], "beta-2")])
    assert view.search("BETA", 0, 9)[1] == 2
    failed = replace(named(view.rows()[0], "broken"), status="error", identity="")
    store.catalog.append([failed])
    assert view.search("broken", 0, 9) == ([], 0)


def test_a_view_cannot_write() -> None:
    assert not {name for name in vars(CatalogView) if not name.startswith("_")} - {"rows", "newest", "find", "search"}
    assert not issubclass(CatalogView, Catalog)


def test_a_video_of_another_recipe_is_named_with_its_recipes(store: Store) -> None:
    row = store.find("alpha")
    for find in (store.find, CatalogView(store.storage).find):
        expected = f"no video 'alpha' with recipe 000000000000 .* with recipe {row.recipe_digest[:12]}"
        with pytest.raises(StoreError, match=expected):
            find("alpha", "0" * 64)
