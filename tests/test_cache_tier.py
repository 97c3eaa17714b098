"""Kept videos: loaded once for many threads, kept within bytes, never kept damaged. With real threads and a real S3."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from indexed import index_clips
from s3_server import S3Server

from sttm.engine.ready_video import ReadyVideo
from sttm.errors import ArtifactError
from sttm.query.cache_tier import CacheConfig, CacheTier
from sttm.query.checkpoint import open_checkpoint
from sttm.query.disk_cache import DiskCache
from sttm.query.lru import ByteLRU
from sttm.query.question import Query
from sttm.query.worker import QueryWorker
from sttm.store.storage import MissingObjectError, Storage
from sttm.store.store import Store

CPU = torch.device("cpu")


def small_video(value: float = 0.0) -> ReadyVideo:
    """A video of 1 KiB: 4 layers of keys and values, float32 [2, 4, 4]."""
    layers = tuple(torch.full((2, 4, 4), value) for _ in range(4))
    return ReadyVideo(layers, layers, 0, (4, 4), 1)


class CountingLoader:
    """Makes small videos and lists their identities."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s, self.loads = takes_s, []  # type: ignore[var-annotated]
        self.error: Exception | None = None

    def __call__(self, identities: tuple[str, ...]) -> ReadyVideo:
        (identity,) = identities
        self.loads.append(identity)
        time.sleep(self.takes_s)
        if self.error:
            raise self.error
        return small_video(float(identity))


def test_lru_forgets_what_was_used_least_recently() -> None:
    lru: ByteLRU[str, str] = ByteLRU(10)
    assert lru.put("a", "A", 4) == lru.put("b", "B", 4) == []
    assert lru.get("a") == "A"
    assert lru.put("c", "C", 4) == [("b", "B")]
    assert lru.put("huge", "H", 11) == [("huge", "H")]
    assert (lru.get("b"), lru.get("huge"), len(lru), lru.size_bytes) == (None, None, 2, 8)
    assert lru.put("a", "A2", 9) == [("c", "C")]
    assert (lru.get("a"), lru.size_bytes) == ("A2", 9)
    lru.drop("a")
    assert (len(lru), lru.size_bytes) == (0, 0)


def test_concurrent_requests_load_a_video_once() -> None:
    loader = CountingLoader(takes_s=0.2)
    tier = CacheTier(loader, CPU, 1 << 20)
    start = threading.Barrier(32)

    def ask(number: int) -> ReadyVideo:
        start.wait()
        return tier.get(str(number % 2))

    with ThreadPoolExecutor(32) as pool:
        videos = list(pool.map(ask, range(32)))
    assert sorted(loader.loads) == ["0", "1"]
    assert len({id(video) for video in videos}) == 2
    assert tier.counts == {"device": 0, "host": 0, "joined": 30, "load": 2}


def test_what_is_held_is_found_without_loading() -> None:
    loader = CountingLoader()
    tier = CacheTier(loader, CPU, device_bytes=2048)
    assert tier.held("1") is None
    videos = {identity: tier.get(identity) for identity in "12"}
    assert tier.held("1") is videos["1"]
    tier.get("3")
    assert (tier.held("1"), tier.held("2")) == (videos["1"], None)  # a video that `held` finds counts as used
    assert tier.counts == {"device": 2, "host": 0, "joined": 0, "load": 3}
    assert loader.loads == ["1", "2", "3"]


def test_a_failed_load_reaches_all_who_wait_and_is_tried_again() -> None:
    loader = CountingLoader(takes_s=0.1)
    loader.error = ArtifactError("damaged")
    tier = CacheTier(loader, CPU, 1 << 20)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(tier.get, "1") for _ in range(8)]
    assert all(isinstance(future.exception(), ArtifactError) for future in futures)
    loader.error = None
    failed = len(loader.loads)
    assert float(tier.get("1").keys[0][0, 0, 0]) == 1.0
    assert len(loader.loads) == failed + 1


def test_what_leaves_the_device_comes_back_from_the_host() -> None:
    loader = CountingLoader()
    tier = CacheTier(loader, CPU, device_bytes=2048, host_bytes=2048)
    for identity in "0123":
        tier.get(identity)
    assert tier.size_bytes == {"device": 2048, "host": 2048}
    assert float(tier.get("1").keys[0][0, 0, 0]) == 1.0
    assert tier.counts["host"] == 1
    assert loader.loads == ["0", "1", "2", "3"]


def test_many_threads_over_few_bytes_get_the_right_videos() -> None:
    tier = CacheTier(CountingLoader(), CPU, device_bytes=3072, host_bytes=2048)

    def ask(number: int) -> bool:
        identity = str(number * 7 % 13)
        return float(tier.get(identity).keys[0][0, 0, 0]) == float(identity)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(2000)))
    assert all(size <= 3072 for size in tier.size_bytes.values())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Store:
    return Store.open(index_clips(tmp_path_factory.mktemp("store"), qwen2_vl_folder, count=3))


@pytest.fixture
def remote(local: Store, s3_server: S3Server) -> Store:
    """The same store on S3, a fresh copy for each test."""
    there = Storage(s3_server.new_root())
    for key in ("format.json", *(k for folder in ("kv", "commit", "catalog") for k in local.storage.keys(folder))):
        there.put(key, local.storage.read(key))
    return Store(there)


def test_disk_copy_answers_without_the_remote_file(remote: Store, tmp_path: Path) -> None:
    row = remote.find("clip-0.mp4")
    manifest = remote.manifest(row.identity)
    disk = DiskCache(tmp_path / "disk", 1 << 30)
    first = disk.load(remote.storage, manifest)
    disk.close()
    remote.storage.delete(manifest.kv.key)
    again = DiskCache(tmp_path / "disk", 1 << 30)  # as a later process would open it
    second = again.load(remote.storage, manifest)
    assert (disk.hits, again.hits, again.size_bytes) == (0, 1, manifest.kv.size_bytes)
    assert all(map(torch.equal, first.keys, second.keys))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_disk_copy_is_replaced_from_the_remote(remote: Store, tmp_path: Path, damage: str) -> None:
    manifest = remote.manifest(remote.find("clip-0.mp4").identity)
    disk = DiskCache(tmp_path, 1 << 30)
    expected = disk.load(remote.storage, manifest)
    disk.close()
    copy = tmp_path / manifest.kv.key
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        copy.unlink()
    else:
        copy.write_bytes(data if damage == "flip" else data[:-100])
    disk = DiskCache(tmp_path, 1 << 30)
    cache = disk.load(remote.storage, manifest)
    disk.close()
    assert all(map(torch.equal, cache.keys, expected.keys))
    assert disk.hits == 0
    assert copy.read_bytes() == remote.storage.read(manifest.kv.key)


def test_damaged_or_missing_remote_file_is_an_error_and_leaves_nothing(remote: Store, tmp_path: Path) -> None:
    manifest = remote.manifest(remote.find("clip-0.mp4").identity)
    data = bytearray(remote.storage.read(manifest.kv.key))
    data[-5000] ^= 1
    remote.storage.put(manifest.kv.key, data)
    disk = DiskCache(tmp_path, 1 << 30)
    with pytest.raises(ArtifactError, match="do not match their digest"):
        disk.load(remote.storage, manifest)
    remote.storage.delete(manifest.kv.key)
    with pytest.raises(MissingObjectError):
        disk.load(remote.storage, manifest)
    disk.close()
    assert disk.size_bytes == 0
    assert not list(tmp_path.rglob("*.safetensors"))


def test_disk_stays_below_its_limit(remote: Store, tmp_path: Path) -> None:
    manifests = [remote.manifest(row.identity) for row in remote.catalog.rows()]
    limit = sum(m.kv.size_bytes for m in manifests[:2])
    disk = DiskCache(tmp_path, limit)
    for manifest in manifests:
        disk.load(remote.storage, manifest)
    disk.close()
    held = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert sum(held) == disk.size_bytes <= limit
    assert not (tmp_path / manifests[0].kv.key).exists()
    assert (tmp_path / manifests[2].kv.key).exists()


def test_a_full_disk_costs_no_answer(remote: Store, tmp_path: Path) -> None:
    manifest = remote.manifest(remote.find("clip-0.mp4").identity)
    disk = DiskCache(tmp_path / "disk", 1 << 30)
    shutil.rmtree(tmp_path / "disk")
    (tmp_path / "disk").write_text("a file where the folder was: nothing can be written")
    assert disk.load(remote.storage, manifest).tokens[0] > 0
    disk.close()
    assert disk.size_bytes == 0


def test_worker_answers_alike_from_every_tier(remote: Store, tmp_path: Path) -> None:
    row = remote.find("clip-1.mp4")
    checkpoint = open_checkpoint(remote.manifest(row.identity))
    config = CacheConfig(device_gb=0, disk=tmp_path)
    worker = QueryWorker(remote, checkpoint, "cpu", config)

    def say() -> str:
        answers = worker.start(worker.load(row.identity), [Query(("What is it?",))])
        while answers.is_running:
            answers.step()
        return answers.texts[0]

    first = say()
    assert worker.disk is not None
    worker.disk.close()
    assert say() == first != ""
    assert worker.disk.hits == 1
    manifest = remote.manifest(row.identity)
    damaged = bytearray(remote.storage.read(manifest.kv.key))
    damaged[len(damaged) // 2] ^= 1
    remote.storage.put(manifest.kv.key, damaged)
    (tmp_path / manifest.kv.key).unlink()
    for _ in range(2):
        with pytest.raises(ArtifactError):
            say()
