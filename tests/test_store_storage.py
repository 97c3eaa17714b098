"""The same promises from a local folder, memory, and a real S3 server on loopback."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server  # noqa: F401

from sttm.errors import ArtifactError, StoreError
from sttm.store.storage import CHUNK_BYTES, MissingObjectError, Storage, public_url


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_server").new_root())
    return str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}"


@pytest.fixture
def storage(url: str) -> Storage:
    return Storage(url)


def test_what_is_put_is_read_and_replaced_as_a_whole(storage: Storage) -> None:
    storage.put("a/b.bin", b"x" * 100)
    storage.put("a/b.bin", bytearray(b"0123456789"))
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 2, 5) == b"234"
    assert storage.read("a/b.bin", 7) == b"789"
    assert storage.read("a/b.bin", 8, 100) == b"89"
    assert storage.read("a/b.bin", 10, 20) == b""
    assert storage.size("a/b.bin") == 10


def test_a_large_view_is_put_in_parts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sttm.store.storage._PART_BYTES", 5 << 20)  # the least that S3 takes
    data = os.urandom((10 << 20) + 17)
    storage.put("large", memoryview(data))
    storage.put("bytes", data)
    assert storage.read("large") == storage.read("bytes") == data


def test_ranges_longer_than_a_chunk_come_back_in_order(storage: Storage) -> None:
    data = os.urandom(CHUNK_BYTES * 2 + 17)
    storage.put("big", data)
    ranges = [(5, CHUNK_BYTES + 99), (0, 3), (CHUNK_BYTES, len(data)), (7, 7)]
    assert storage.read_ranges("big", ranges) == [data[a:b] for a, b in ranges]


def test_a_range_past_the_end_is_an_error_not_a_short_answer(storage: Storage) -> None:
    storage.put("short", b"0123456789")
    with pytest.raises(ArtifactError, match=r"short ends at byte 10, expected 20"):
        storage.read_ranges("short", [(5, 20)])


def test_create_lets_the_first_win(storage: Storage) -> None:
    assert storage.create("c/one", b"first")
    assert not storage.create("c/one", b"second")
    assert storage.create("c/one", b"first"), "holding the same bytes counts: our own put may have been retried"
    assert storage.read("c/one") == b"first"


def test_of_many_creators_exactly_one_wins(storage: Storage) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return storage.create("race", b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert storage.read("race") == b"%d" % won.index(True)


def test_listing_shows_what_another_writer_has_just_added(storage: Storage, url: str) -> None:
    other = Storage(url)
    assert storage.keys("log") == []
    other.put("log/1", b"a")
    assert storage.keys("log") == ["log/1"]
    other.put("log/sub/2", b"bc")
    other.put("logs/3", b"not below log/")
    assert [(entry.key, entry.size_bytes) for entry in storage.entries("log")] == [("log/1", 1), ("log/sub/2", 2)]
    assert all(entry.modified.tzinfo for entry in storage.entries("log"))


def test_listing_while_the_first_object_is_added_is_no_error(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: S3Server = request.getfixturevalue("s3_server")
    storage = Storage(server.new_root())
    list_objects = storage._backend.fs._lsdir

    async def list_then_add(*arguments: object, **options: object) -> object:
        listed = await list_objects(*arguments, **options)
        server.add(f"{storage.url}/log/1")
        return listed

    monkeypatch.setattr(storage._backend.fs, "_lsdir", list_then_add)
    assert storage.keys("log") == []
    monkeypatch.undo()
    assert storage.keys("log") == ["log/1"]


def test_an_empty_object_has_no_bytes_in_any_range(storage: Storage) -> None:
    storage.put("empty", b"")
    assert storage.read("empty") == storage.read("empty", 0, 8) == b""


def test_what_others_leave_among_the_objects_is_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("kv/a", b"ours")
    for name in (".DS_Store", ".nfs0001", "a b", "ö"):
        (tmp_path / "kv" / name).write_bytes(b"not ours")
    assert storage.keys("kv") == ["kv/a"]


def test_new_folders_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is safe once the one that names it was synced."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        "sttm.store.storage.os.fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    root = tmp_path / "new"
    for key in ("kv/ab/abc/attempt/file", "kv/ab/abd/attempt/file"):
        synced.clear()
        missing = {f for f in (root / key).parents if tmp_path in f.parents and not f.exists()}
        Storage(str(root)).put(key, b"x")
        assert {str(folder.parent) for folder in missing} | {str((root / key).parent)} <= set(synced)


def test_a_missing_object_is_its_own_error(storage: Storage) -> None:
    for look in (storage.read, storage.size, lambda key: storage.read_ranges(key, [(0, 1)])):
        with pytest.raises(MissingObjectError, match="nothing/here does not exist"):
            look("nothing/here")
    assert not storage.exists("nothing/here")
    storage.delete("nothing/here")


def test_deleted_objects_are_gone(storage: Storage) -> None:
    storage.put("d/x", b"1")
    storage.delete("d/x")
    assert not storage.exists("d/x")
    assert storage.keys("d") == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/.hidden", "a\\b", "a b", "a\n", "-x"])
def test_keys_that_could_leave_the_root_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not an object key"):
        Storage(str(tmp_path)).put(key, b"")


def test_a_killed_local_writer_leaves_nothing_where_readers_look(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from sttm.store import storage
storage.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
storage.Storage(sys.argv[1]).put("kv/x", b"data")
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert Storage(str(tmp_path)).keys("kv") == []
    assert len(Storage(str(tmp_path)).keys("tmp")) == 1


def test_local_files_get_the_mode_that_umask_allows(tmp_path: Path) -> None:
    Storage(str(tmp_path)).put("x", b"")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_names_place_and_cure(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"cannot write .*x: PermissionError.*check access rights"):
        Storage(str(tmp_path)).put("x", b"")


def test_credentials_never_show() -> None:
    shown = public_url("s3://key:secret@bucket/path?token=abc")
    assert shown == "s3://bucket/path"


@pytest.mark.parametrize("url", ["http://host/store", "gs://bucket/store"])
def test_storage_whose_exclusive_create_is_untested_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match=f"cannot keep a store at {url}: use a local folder or s3://bucket/path"):
        Storage(url)


def test_an_empty_name_is_not_the_current_folder() -> None:
    for name in ("", " "):
        with pytest.raises(StoreError, match="the store has an empty name"):
            Storage(name)


def test_an_unreachable_server_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match=r"cannot read s3://bucket/root/a: .*check the URL and credentials"):
        Storage("s3://bucket/root").read("a")
