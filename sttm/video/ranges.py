"""A remote file in byte ranges that are fetched in parallel and given out in order.

One connection to an object store is far slower than the network, so several are used at once.
"""

import errno
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

RANGE_BYTES = 8 << 20
_IN_FLIGHT = 8  # ranges, which bounds the memory for those that arrive early
# What may change in a filesystem's description of a file when the file is replaced.
_VERSION_KEYS = ("size", "ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "Last-Modified")


def has_ranges(fs: Any, info: Mapping[str, Any]) -> bool:
    """Whether a file can be fetched in parallel ranges and has more than one.

    Args:
        fs: the fsspec filesystem that holds the file.
        info: what the filesystem says about the file.
    """
    return bool(fs.async_impl) and (info.get("size") or 0) > RANGE_BYTES and info.get("partial", True)


def fetch_ranges(fs: Any, path: str, info: Mapping[str, Any]) -> Generator[bytes, None, None]:
    """Fetch a file in ranges, or over one connection if a web server gives out whole files only.

    Args:
        fs: the filesystem, for which `has_ranges` holds.
        path: path of the file.
        info: what the filesystem has just said about the file.

    Yields:
        Successive pieces of the file. They belong to one state of the file only if the iteration ends without an error.

    Raises:
        OSError: the file was replaced or cut meanwhile. Errors of the filesystem's own classes are raised, too.
    """
    with fs.open(path, "rb") as file:
        pieces = _in_order(lambda start, end: bytes(file._fetch_range(start, end)), int(file.size))
        try:
            first = next(pieces)
        except ValueError:  # fsspec's answer to a web server that ignores the range
            yield from _streamed(fs, path)
        else:
            yield first
            yield from pieces
        is_pinned = "IfMatch" in getattr(file, "read_kw", {})  # s3fs asks for ranges of the object that it opened only
    if not is_pinned and _version(fs.info(path)) != _version(info):
        raise OSError(errno.EBUSY, "the file was replaced while it was read")


def _in_order(fetch: Callable[[int, int], bytes], size_bytes: int) -> Generator[bytes, None, None]:
    """Yield the ranges of a file of more than one range. Nothing is yielded before the second range has come.

    A range from the start of the file says nothing about whether a server takes ranges.
    """

    def whole(start: int) -> bytes:
        end = min(start + RANGE_BYTES, size_bytes)
        data = fetch(start, end)
        if len(data) != end - start:
            raise OSError(errno.EIO, f"{len(data)} bytes came where {end - start} were asked for")
        return data

    later = iter(range(0, size_bytes, RANGE_BYTES))
    with ThreadPoolExecutor(_IN_FLIGHT, "video-range") as threads:
        coming = deque(threads.submit(whole, start) for start in islice(later, _IN_FLIGHT))
        try:
            coming[1].result()
            while coming:
                yield coming.popleft().result()
                coming.extend(threads.submit(whole, start) for start in islice(later, 1))
        finally:
            for future in coming:
                future.cancel()


def _version(info: Mapping[str, Any]) -> list[Any]:
    return [info.get(key) for key in _VERSION_KEYS]


def _streamed(fs: Any, path: str) -> Generator[bytes, None, None]:
    with fs.open(path, "rb", block_size=0) as file:
        while piece := file.read(RANGE_BYTES):
            yield piece
