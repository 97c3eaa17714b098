"""The catalog of a service: as fresh as promised, and the same rows as the catalog itself."""

from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import publish

from sttm.errors import StoreError
from sttm.store.catalog import CatalogRow
from sttm.store.catalog_view import CatalogView
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
    with pytest.raises(StoreError, match="no video 'nothing'"):
        view.find("nothing")
    store.catalog.append([replace(named(row, "twin"), name=row.name)])
    with pytest.raises(StoreError, match="is the name of 2 videos"):
        view.find(row.name)


def test_search_is_paged_newest_first_and_shows_usable_videos_only(store: Store) -> None:
    view = CatalogView(store.storage, max_age_s=0)
    assert [row.video_id for row in view.search("", 0, 2)[0]] == [row.video_id for row in view.rows()[:0:-1]]
    assert view.search("", 2, 2)[1] == 3
    found, total = view.search("BETA", 0, 9)
    assert total == len(found) == 1
    failed = replace(named(view.rows()[0], "broken"), status="error", identity="")
    store.catalog.append([failed])
    assert view.search("broken", 0, 9) == ([], 0)
