"""`sttm explain`: a file is called gone only if that is proven, and every other case has a name of its own."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from indexed import index_clips
from s3_server import S3Server
from web_server import WebServer

from jobs import store as store_commands
from jobs.explain import explain
from sttm.errors import CorpusError, StoreError
from sttm.store.catalog.row import CatalogRow
from sttm.store.sources import source_states
from sttm.store.store import Store


class Case:
    """A store of one indexed clip, and `explain` under the settings that made it."""

    def __init__(self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.clip = folder / "corpus" / "clip-0.mp4"
        self.url = index_clips(folder, model, count=1)
        self.store = Store.open(self.url)
        self.row = self.store.find("clip-0.mp4")
        self._capsys = capsys
        self._settings = folder / "settings.yaml"
        self._settings.write_text(
            f"model: {{path: {model}, dtype: float32}}\nvideo: {{fps: 2.0, max_frames: 8}}\nmerge: {{budget: 0.4}}\n"
        )

    def explain(self, video: str, *overrides: str) -> tuple[int, str]:
        """Exit code and output."""
        self._capsys.readouterr()
        code = explain(video, self.url, str(self._settings), list(overrides))
        return code, self._capsys.readouterr().out

    def move(self, uri: str) -> CatalogRow:
        """Let the video have been indexed from another URI."""
        name = uri.rpartition("/")[2].partition("?")[0]
        row = replace(self.row, video_id=f"moved-{name.split('.')[0]}", uri=uri, name=name)
        self.store.catalog.append([row])
        return row


@pytest.fixture
def case(tmp_path: Path, qwen2_vl_folder: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(tmp_path, qwen2_vl_folder, capsys)


def test_a_stored_video_is_explained_by_file_id_and_uri_alike(case: Case) -> None:
    for name in (str(case.clip), case.row.video_id, case.row.uri, "clip-0.mp4"):
        code, out = case.explain(name)
        assert code == 0
        assert "hit: indexed" in out
        assert "gone" not in out
    code, out = case.explain(case.row.video_id, "merge.budget=0.5")
    assert code == 1
    assert "merge.budget is 0.4, asked for 0.5" in out


def test_a_deleted_file_is_gone_and_its_artifact_still_counts(case: Case) -> None:
    case.clip.unlink()
    for name in (str(case.clip), case.row.video_id, "clip-0.mp4"):
        code, out = case.explain(name)
        assert code == 0
        assert out.startswith(f"gone: {case.row.uri}: the folder {case.clip.parent} has no such file; `sttm store rm")
        assert "still answers questions" in out
    code, out = case.explain("clip-0.mp4", "merge.budget=0.5")
    assert code == 1
    assert "merge.budget is 0.4, asked for 0.5" in out


def test_a_file_below_a_folder_that_is_away_is_unreadable_and_not_gone(case: Case) -> None:
    case.clip.parent.rename(case.clip.parent.with_name("unmounted"))
    code, out = case.explain(str(case.clip))
    assert code == 0
    assert out.startswith(f"unreadable: {case.row.uri}: there is no folder {case.clip.parent}; is it mounted?")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights_is_unreadable_and_not_gone(case: Case) -> None:
    case.clip.chmod(0)
    code, out = case.explain(str(case.clip))
    assert code == 0
    assert out.startswith("unreadable: ")


def test_a_web_server_in_trouble_does_not_make_a_file_gone(case: Case) -> None:
    with WebServer() as server:
        case.move(server.url("500"))
        code, out = case.explain(server.url("500"))
        assert code == 0
        assert "its server answers with status 500" in out
        assert out.startswith("unreadable: ")
        assert "hunter2" not in out
        case.move(server.url("404"))
        assert case.explain(server.url("404"))[1].startswith("gone: ")


@pytest.mark.parametrize("key", ["x//a.mp4", "/b.mp4", "q?x=1/#2.mp4", "p%20q/é 1.mp4", "x/../c.mp4"])
def test_an_object_is_explained_and_removed_by_what_is_shown(case: Case, s3_server: S3Server, key: str) -> None:
    uri = f"{s3_server.new_root()}/{key}"
    client = boto3.client("s3")
    client.put_object(Bucket="bucket", Key=uri.removeprefix("s3://bucket/"), Body=case.clip.read_bytes())
    row = case.move(uri)
    code, out = case.explain(uri)
    assert code == 0
    assert f"video     {uri}\n" in out
    assert "hit: indexed" in out
    assert source_states(case.store, [row]) == ["changed"]
    assert store_commands.rm(uri, case.url, yes=True) == 0
    assert case.row.video_id in {row.video_id for row in case.store.catalog.rows()}
    assert row.video_id not in {row.video_id for row in case.store.catalog.rows()}


def test_a_missing_bucket_does_not_make_a_file_gone(case: Case, s3_server: S3Server) -> None:
    lost, deleted = "s3://nobody/lost.mp4", f"{s3_server.new_root()}/deleted.mp4"
    case.move(lost)
    case.move(deleted)
    assert case.explain(lost)[1].startswith(f"unreadable: {lost}: there is no bucket nobody\n")
    assert case.explain(deleted)[1].startswith(f"gone: {deleted}: bucket bucket has no such object; ")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("*.mkv", "this pattern matches no video"),
        ("nothing.mp4", "has no such file"),
        ("away/a.mp4", "is it mounted?"),
        ("empty", "it is a folder"),
    ],
)
def test_what_neither_store_nor_storage_has_is_unknown(case: Case, name: str, cause: str) -> None:
    (case.clip.parent / "empty").mkdir()
    code, out = case.explain(str(case.clip.parent / name))
    assert code == 1
    assert out.startswith(f"unknown: {case.url} has no video of this id, URI or name; ")
    assert cause in out


def test_a_removed_video_is_called_removed(case: Case) -> None:
    store_commands.rm("clip-0.mp4", case.url, yes=True)
    code, out = case.explain(case.row.video_id)
    assert code == 1
    assert out.startswith(f"removed: {case.row.video_id} was removed on ")
    code, out = case.explain(str(case.clip))
    assert code == 1
    assert "removed: " in out
    assert "miss: the store holds nothing of this file" in out


def test_a_name_of_several_videos_and_a_folder_of_several_are_refused(case: Case) -> None:
    case.move("file:///elsewhere/clip-0.mp4")
    with pytest.raises(StoreError, match="is the name of 2 videos; use one of their ids"):
        case.explain("clip-0.mp4")
    (case.clip.parent / "clip-1.mp4").write_bytes(b"x")
    with pytest.raises(CorpusError, match="names 2 videos; explain takes one"):
        case.explain(str(case.clip.parent))


def test_the_help_documents_each_word_and_the_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.explain", "--help"], capture_output=True, text=True)
    for text in ("hit ", "miss ", "gone ", "unreadable ", "removed ", "unknown ", "Exit code 0 for a hit"):
        assert text in done.stdout
