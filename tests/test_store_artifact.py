"""The commit protocol: killed writers, racing writers, damaged and foreign manifests."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from store_samples import publish, source_for

from sttm.errors import ArtifactError, StoreError
from sttm.store.artifact import committed, load_manifest, manifest_key
from sttm.store.sealed import read_sealed, seal
from sttm.store.storage import MissingObjectError, Storage
from sttm.store.store import Store

# Processes are forked off one that has imported everything, which takes seconds.
FORKING = """
import itertools, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from sttm.store.storage import Storage
from sttm.store.store import Store
from store_samples import publish

def fork(work, *arguments):
    child = os.fork()
    if child == 0:
        work(*arguments)
        os._exit(0)
    return child
"""

# Each writer dies by SIGKILL right before or right after its n-th write.
KILLED_WRITERS = """
def dying(write, number, moment):
    writes = itertools.count(1)  # several threads write
    def wrapped(self, key, data):
        is_last = next(writes) == number
        if is_last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = write(self, key, data)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

def write(url, number, moment):
    store = Store.open(url, create=True)
    create, counted = Storage.create, dying(lambda self, key, data: puts[key.startswith(("commit", "catalog/log"))](
        self, key, data), number, moment)
    puts = [Storage.put, create]
    Storage.put = Storage.create = counted
    publish(store)

for number in range(1, 6):
    for moment in ("before", "after"):
        child = fork(write, f"{sys.argv[2]}/{number}-{moment}", number, moment)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""

RACING_WRITERS = """
def write(url, out):
    row = publish(Store.open(url))
    os.write(out, Store.open(url).manifest(row.identity).kv.key.encode())

pipes = [os.pipe() for _ in range(3)]
children = [fork(write, sys.argv[2], out) for _, out in pipes]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
print(*{os.read(source, 1000).decode() for source, _ in pipes})
"""


def run(code: str, url: str) -> str:
    arguments = [sys.executable, "-c", FORKING + code, str(Path(__file__).parent), url]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


WRITES = ["kv.safetensors", "tokens.parquet", "manifest", "catalog part", "catalog snapshot"]


def test_a_writer_killed_at_any_write_leaves_a_clean_store_and_the_next_run_completes(tmp_path: Path) -> None:
    run(KILLED_WRITERS, str(tmp_path))
    for number, name in enumerate(WRITES, start=1):
        for moment in ("before", "after"):
            store = Store.open(str(tmp_path / f"{number}-{moment}"))
            exists = number > 3 or (number == 3 and moment == "after")
            listed = number == 5 and moment == "after"
            assert len(committed(store.storage)) == exists, (name, moment)
            for identity in committed(store.storage):
                store.load_kv(identity)
            assert len(store.catalog.rows()) == listed, (name, moment)
            assert len(store.catalog.repair()) == exists - listed, (name, moment)
            row = publish(store)
            assert store.find("clip") == row
            store.load_kv(row.identity)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_writers_racing_for_one_identity_one_counts_for_all(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "store") if kind == "local" else request.getfixturevalue("s3_server").new_root()
    store = Store.open(url, create=True)
    assert len(run(RACING_WRITERS, url).split()) == 1, "all writers report the same artifact"
    (identity,) = committed(store.storage)
    assert len(store.storage.keys("kv")) == 2, "losers take their files back"
    store.load_kv(identity)
    assert len(store.catalog.rows()) == 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


def test_one_flipped_bit_in_any_file_is_noticed_and_the_file_named(store: Store) -> None:
    row = publish(store)
    manifest = store.manifest(row.identity)
    for key in (manifest.kv.key, manifest.tokens.key, manifest_key(row.identity)):
        whole = store.storage.read(key)
        for position in range(0, len(whole), max(1, len(whole) // 40)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            store.storage.put(key, damaged)
            with pytest.raises(ArtifactError, match=key):
                (store.load_tokens if key == manifest.tokens.key else store.load_kv)(row.identity)
        store.storage.put(key, whole)
    store.load_kv(row.identity)


SOURCE = asdict(source_for())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, this program reads 1"),
        ({"content_digest": "other"}, "belongs to another artifact"),
        ({"identity": "0" * 64}, "belongs to another artifact"),
        ({"extra": 1}, "malformed"),
        ({"facts": []}, "malformed"),
        ({"kv": {"key": "kv/00/x", "size_bytes": 1, "digest": ""}}, "outside its own folder"),
        ({"kv": {"key": 7, "size_bytes": 1, "digest": ""}}, "malformed"),
        ({"recipe": None}, "malformed"),
        ({"recipe": []}, "malformed"),
        ({"source": {**SOURCE, "size_bytes": {}}}, "size_bytes is {}"),
        ({"source": {**SOURCE, "name": None}}, "name is None"),
        ({"kv": {"key": "kv/00/x", "size_bytes": "big", "digest": ""}}, "size_bytes is 'big'"),
        ({"kv": {"key": "kv/00/x", "size_bytes": -1, "digest": ""}}, "size_bytes is -1"),
        ({"kv": {"key": "kv/00/x", "size_bytes": 1 << 63, "digest": ""}}, "size_bytes is 9"),
        ({"facts": {"tokens_before": "x", "tokens_after": 1}}, "tokens_before is 'x'"),
        ({"facts": {"tokens_before": 1}}, "missing .* 'tokens_after'"),
        ({"facts": {"tokens_before": 1, "tokens_after": True}}, "tokens_after is True"),
        ({"facts": {"tokens_before": 1, "tokens_after": 1, "details": []}}, "details is "),
        ({"facts": {"tokens_before": 1, "tokens_after": 1, "thresholds": [1]}}, "thresholds is "),
        ({"facts": {"tokens_before": 1, "tokens_after": 1, "timings_s": {"a": "b"}}}, "timings_s is "),
    ],
)
def test_a_sealed_manifest_that_is_not_this_artifacts_is_refused(store: Store, change: dict, message: str) -> None:
    identity = publish(store).identity
    body = read_sealed(store.storage, manifest_key(identity), "")
    store.storage.put(manifest_key(identity), seal({**body, **change}))
    with pytest.raises(ArtifactError, match=message):
        load_manifest(store.storage, identity)


def test_a_file_of_another_size_is_refused_before_it_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = store.manifest(publish(store).identity)
    store.storage.put(manifest.tokens.key, bytes(manifest.tokens.size_bytes + 1))
    monkeypatch.setattr(store, "manifest", lambda _: manifest)
    monkeypatch.setattr(store.storage, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ArtifactError, match=f"{manifest.tokens.key} has .* bytes, committed were .*index the video"):
        store.load_tokens(manifest.identity)


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
def test_a_truncated_file_is_noticed_and_named(store: Store, kept: int) -> None:
    row = publish(store)
    key = store.manifest(row.identity).kv.key
    store.storage.put(key, store.storage.read(key)[:kept])
    with pytest.raises(ArtifactError, match=f"{key}.*index the video again"):
        store.load_kv(row.identity)


def test_a_manifest_without_its_file_is_a_missing_object(store: Store) -> None:
    row = publish(store)
    store.storage.delete(store.manifest(row.identity).kv.key)
    with pytest.raises(MissingObjectError, match=r"kv\.safetensors does not exist"):
        store.load_kv(row.identity)


def test_a_full_disk_commits_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Storage, key: str, data: bytes) -> None:
        raise StoreError("cannot write: no space left on device")

    monkeypatch.setattr(Storage, "put", full)
    with pytest.raises(StoreError, match="no space"):
        publish(store)
    assert committed(store.storage) == []
