"""Remote files in parallel ranges: the bytes of one state of the file, in order, from S3 and from web servers."""

import os
from typing import Any

import pytest
from blake3 import blake3
from s3_server import S3Server
from web_server import WebServer

from sttm.errors import VideoError
from sttm.urls import open_filesystem
from sttm.video import ranges
from sttm.video.file import read_video_file
from sttm.video.ranges import fetch_ranges, has_ranges

DATA = os.urandom(1000 * 40 + 17)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1000)


def put(url: str, data: bytes) -> None:
    fs, path = open_filesystem(url)
    fs.pipe_file(path, data)


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    url = f"{s3_server.new_root()}/a.mp4"
    put(url, DATA)
    return url


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2000, len(DATA)])
def test_an_object_is_read_whole_and_in_order(s3_url: str, size: int) -> None:
    put(s3_url, DATA[:size])
    source, digest = read_video_file(s3_url, len(DATA))
    assert source.getvalue() == DATA[:size]
    assert digest == blake3(DATA[:size]).hexdigest()


@pytest.mark.parametrize(("takes_ranges", "parts"), [(True, 41), (False, 1)])
def test_a_web_file_is_read_whole_and_in_order(takes_ranges: bool, parts: int) -> None:
    with WebServer({"a.mp4": DATA}, takes_ranges) as server:
        source, digest = read_video_file(server.url("a.mp4"), len(DATA))
        assert source.getvalue() == DATA
        assert digest == blake3(DATA).hexdigest()
        gets = [request for request in server.requests if request.startswith("GET")]
    if takes_ranges:
        assert sorted(gets) == sorted(f"GET bytes={at}-{min(at + 1000, len(DATA)) - 1}" for at in range(0, 41000, 1000))
    else:
        assert gets.count("GET") == 1
        assert len(gets) <= 1 + 8


def test_a_file_over_the_limit_is_not_fetched() -> None:
    with WebServer({"a.mp4": DATA}, takes_ranges=True) as server:
        with pytest.raises(VideoError) as caught:
            read_video_file(server.url("a.mp4"), len(DATA) - 1)
        assert caught.value.code == "too_large"
        assert all(request.startswith("HEAD") for request in server.requests)


def replaced_while_read(url: str, replace: Any) -> str:
    """The error of a reading in the middle of which `replace` is called."""
    fs, path = open_filesystem(url)
    info = fs.info(path)
    assert has_ranges(fs, info)
    pieces = fetch_ranges(fs, path, info)
    next(pieces)
    replace()
    with pytest.raises(OSError, match=r"the file was replaced|no longer exists|bytes came where") as caught:
        list(pieces)
    return str(caught.value)


@pytest.mark.parametrize("other", [bytes(len(DATA)), DATA[:-1], DATA + b"x"], ids=["as long", "shorter", "longer"])
def test_a_replaced_object_is_noticed(s3_url: str, other: bytes) -> None:
    assert "no longer exists" in replaced_while_read(s3_url, lambda: put(s3_url, other))


@pytest.mark.parametrize("other", [bytes(len(DATA)), DATA[:-1], DATA + b"x"], ids=["as long", "shorter", "longer"])
def test_a_replaced_web_file_is_noticed(other: bytes) -> None:
    with WebServer({"a.mp4": DATA}, takes_ranges=True) as server:
        error = replaced_while_read(server.url("a.mp4"), lambda: server.files.update({"a.mp4": other}))
    assert error.endswith("was replaced while it was read") or "bytes came where" in error


def test_trouble_in_the_middle_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error keeps its cause, and no secret of the address."""
    with WebServer({"a.mp4": DATA}, takes_ranges=True) as server:
        whole = ranges._in_order

        def cut(fetch: Any, size_bytes: int) -> Any:
            return whole(lambda start, end: fetch(start, end)[: 900 if start == 9000 else None], size_bytes)

        monkeypatch.setattr(ranges, "_in_order", cut)
        message = r"127.*a\.mp4 cannot be read just now: 900 bytes came where 1000 were asked for"
        with pytest.raises(OSError, match=message) as caught:
            read_video_file(server.url("a.mp4"), len(DATA))
    assert "hunter2" not in str(caught.value)
