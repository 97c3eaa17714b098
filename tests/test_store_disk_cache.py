"""Copies of remote files on a local disk stay within one limit for all processes, and within the speed of the disk.

`test_cache_tier.py` tests that copies answer for the remote files and that damaged ones are not used.
"""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import make_cache, publish

from sttm.errors import ArtifactError
from sttm.query import disk_cache
from sttm.query.disk_cache import DiskCache
from sttm.store.artifact import Manifest
from sttm.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"memory://{tmp_path.name}", create=True)


@pytest.fixture
def manifests(store: Store) -> list[Manifest]:
    cache = make_cache(layers=1, merge_layer=0, heads=1, head_dim=8)
    return [store.manifest(publish(store, f"clip-{number}", cache=cache).identity) for number in range(6)]


def held(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in (folder / "kv").rglob("*.safetensors")}


def test_processes_on_one_folder_keep_its_limit_together(
    store: Store, manifests: list[Manifest], tmp_path: Path
) -> None:
    limit = int(2.5 * manifests[0].kv.size_bytes)
    caches = [DiskCache(tmp_path, limit) for _ in range(2)]
    for number, manifest in enumerate(manifests):
        caches[number % 2].load(store.storage, manifest)
    for cache in caches:
        cache.close()
    sizes = [(tmp_path / key).stat().st_size for key in held(tmp_path)]
    assert 0 < sum(sizes) <= limit


def test_what_any_process_used_last_stays(store: Store, manifests: list[Manifest], tmp_path: Path) -> None:
    size = manifests[0].kv.size_bytes
    for manifest in manifests[:2]:
        cache = DiskCache(tmp_path, 2 * size)
        cache.load(store.storage, manifest)
        cache.close()
    other = DiskCache(tmp_path, 2 * size)
    other.load(store.storage, manifests[0])
    assert other.hits == 1
    third = DiskCache(tmp_path, 2 * size)
    third.load(store.storage, manifests[2])
    third.close()
    assert held(tmp_path) == {manifests[0].kv.key, manifests[2].kv.key}


def test_a_slow_disk_gets_no_more_copies_than_memory_is_set_aside_for(
    store: Store, manifests: list[Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "_WAITING_BYTES", 2 * manifests[0].kv.size_bytes)
    cache, may_write = DiskCache(tmp_path, 1 << 30), threading.Event()
    put = cache._storage.put
    monkeypatch.setattr(cache._storage, "put", lambda *written: (may_write.wait(), put(*written)))
    for manifest in manifests[:5]:
        assert cache.load(store.storage, manifest).tokens[0] > 0
    may_write.set()
    cache.close()
    assert held(tmp_path) == {manifest.kv.key for manifest in manifests[:2]}


def test_a_copy_larger_than_the_limit_pushes_nothing_out(
    store: Store, manifests: list[Manifest], tmp_path: Path
) -> None:
    cache = DiskCache(tmp_path, manifests[0].kv.size_bytes)
    cache.load(store.storage, manifests[0])
    large = store.manifest(publish(store, "large", cache=make_cache(layers=3)).identity)
    cache.load(store.storage, large)
    cache.close()
    assert held(tmp_path) == {manifests[0].kv.key}


def test_a_size_that_is_not_the_files_takes_no_memory(store: Store, manifests: list[Manifest], tmp_path: Path) -> None:
    manifest = manifests[0]
    forged = replace(manifest, kv=replace(manifest.kv, size_bytes=1 << 50))
    with pytest.raises(ArtifactError, match=f"{manifest.kv.key} has .* bytes, committed were {1 << 50}; remove"):
        DiskCache(tmp_path, 1 << 30).load(store.storage, forged)
