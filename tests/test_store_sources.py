"""A source file is called gone only where its storage says that exactly this file does not exist."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from s3_server import S3Server
from store_samples import publish
from web_server import WebServer

from sttm.store.sources import absence, source_states
from sttm.store.store import Store


def said(uri: str) -> tuple[bool, str]:
    found = absence(uri)
    assert found is not None
    return found.is_gone, found.cause


def test_a_local_file_is_gone_where_its_folder_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert absence(str(tmp_path / "a.mp4")) is None
    assert said(str(tmp_path / "b.mp4")) == (True, f"the folder {tmp_path} has no such file")


def test_a_local_file_may_be_there_where_its_folder_cannot_be_looked_into(tmp_path: Path) -> None:
    is_gone, cause = said(str(tmp_path / "not mounted" / "a.mp4"))
    assert not is_gone
    assert "is it mounted?" in cause
    assert said(str(tmp_path)) == (False, "it is a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_file_in_a_folder_without_rights_is_not_gone(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    assert said(str(folder / "a.mp4")) == (False, "it may not be looked at; check permissions or credentials")
    folder.chmod(0o700)


def test_a_web_server_says_gone_by_404_and_nothing_by_500() -> None:
    with WebServer({"a.mp4": b"x"}) as server:
        assert absence(server.url("a.mp4")) is None
        assert said(server.url("404")) == (True, "its server answers with status 404")
        for status in ("500", "403"):
            assert said(server.url(status)) == (False, f"its server answers with status {status}")
        url = server.url("a.mp4")
    is_gone, cause = said(url)
    assert not is_gone
    assert "cannot be reached" in cause
    assert "hunter2" not in cause


def test_an_object_is_gone_only_where_its_bucket_exists(s3_server: S3Server) -> None:
    root = s3_server.new_root()
    s3_server.add(f"{root}/a.mp4")
    assert absence(f"{root}/a.mp4") is None
    assert said(f"{root}/b.mp4") == (True, "bucket bucket has no such object")
    assert said("s3://nobody/b.mp4") == (False, "there is no bucket nobody")
    assert said(root) == (False, "it is a folder")


def test_storage_that_cannot_be_asked_says_nothing_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not said("nosuch://host/a.mp4")[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    is_gone, cause = said("s3://bucket/a.mp4")
    assert not is_gone
    assert cause.startswith("its storage cannot be asked")


def test_states_of_rows_tell_gone_from_unreadable(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    row = publish(store)
    there = tmp_path / "there.mp4"
    there.write_bytes(b"x")
    uris = (there, tmp_path / "gone.mp4", tmp_path / "away" / "a.mp4")
    rows = [replace(row, uri=uri.as_uri()) for uri in uris]
    assert source_states(store, rows) == ["changed", "gone", "unreadable"]
