"""How many requests to object storage a video and a question cost; `sttm/store/FORMAT.md` states the prices."""

import re
from collections import Counter

import pytest
from s3_server import S3Server
from store_samples import make_cache, make_tokens, recipe_for, source_for

from sttm.store.facts import Facts
from sttm.store.key import identity
from sttm.store.kv import file as kv_file
from sttm.store.kv.file import encode_kv
from sttm.store.store import Store
from sttm.urls import open_filesystem
from sttm.video import ranges
from sttm.video.file import read_video_file


class Counting:
    """Counts requests by method and file name since the last call."""

    def __init__(self, server: S3Server, root: str) -> None:
        self._server, self._root, self._seen = server, root, 0

    def __call__(self) -> dict[str, int]:
        requests = self._server.requests(self._root)
        new, self._seen = requests[self._seen :], len(requests)
        methods_and_names = (re.sub(" .*/", " ", request) for request in new)
        return dict(Counter(methods_and_names))


@pytest.fixture
def root(s3_server: S3Server) -> str:
    return s3_server.new_root()


@pytest.fixture
def count(s3_server: S3Server, root: str) -> Counting:
    return Counting(s3_server, root)


@pytest.mark.parametrize("is_large", [False, True])
def test_a_video_is_looked_up_committed_and_loaded_with_these_requests(
    root: str, count: Counting, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    monkeypatch.setattr("sttm.store.storage._PART_BYTES", 5 << 20 if is_large else 50 << 20)
    cache = make_cache(layers=8, head_dim=128, frames=40, heads=8 if is_large else 1)
    kv, recipe = encode_kv(cache, "exact"), recipe_for("exact")
    store, name = Store.open(root, create=True), identity(recipe, "c")
    count()
    assert not store.has(name)
    assert count() == {f"HEAD {name}.json": 1}
    store.publish(recipe, "c", source_for(), kv, make_tokens(cache), Facts(1, 1))
    parts = -(-len(kv.data) // (5 << 20))
    upload = {"POST kv.safetensors": 1, "PUT kv.safetensors?part": parts, "POST kv.safetensors?part": 1}
    once = {"PUT kv.safetensors": 1}
    assert (parts > 2) == is_large
    assert count() == {**(upload if is_large else once), "PUT tokens.parquet": 1, f"PUT {name}.json": 1}
    store.load_kv(name)
    pieces = -(-(len(kv.data) - 8192) // kv_file._PIECE_BYTES)
    assert count() == {f"GET {name}.json": 1, "HEAD kv.safetensors": 1, "GET kv.safetensors": 1 + pieces}


def test_a_source_is_read_with_two_looks_and_one_request_a_range(
    root: str, count: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1000)
    fs, path = open_filesystem(f"{root}/a.mp4")
    fs.pipe_file(path, bytes(7001))
    count()
    read_video_file(f"{root}/a.mp4", 1 << 20)
    assert count() == {"HEAD a.mp4": 2, "GET a.mp4": 8}
