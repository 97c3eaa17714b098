"""Read the bytes of one video file from any fsspec filesystem and compute their digest while reading."""

import errno
import io
from collections.abc import Generator
from contextlib import closing
from typing import Any

from sttm.errors import CorpusError, VideoError
from sttm.urls import is_http, open_filesystem, redact_url
from sttm.video.ranges import fetch_ranges, has_ranges

_CHUNK_BYTES = 8 << 20
_NOT_A_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
_GONE, _REFUSED = (404, 410), (401, 403)


def read_video_file(uri: str, max_bytes: int, storage_options: dict[str, Any] | None = None) -> tuple[io.BytesIO, str]:
    """Read a whole file into memory.

    Args:
        uri: path or URL of the file.
        max_bytes: the most bytes. If the storage reports a larger size, nothing is downloaded.
        storage_options: options of the fsspec filesystem.

    Returns:
        The bytes, and their blake3 digest in hex.

    Raises:
        VideoError: the file cannot be used; the code is `missing`, `unreadable`, `empty_file` or `too_large`.
        OSError: the storage, the network or the machine failed; another attempt may succeed.
    """
    where = redact_url(uri)
    try:
        return _read(uri, where, max_bytes, storage_options)
    except (VideoError, MemoryError):
        raise
    except Exception as e:  # storage clients raise classes of their own, whose messages may contain credentials
        raise _fault(e, where) from None


def _fault(error: Exception, where: str) -> Exception:
    """Translate the error of a filesystem: VideoError if the file cannot be used, OSError if the storage failed."""
    if is_http(where) and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec raises "not found" for every error of a web server
    status = getattr(error, "status", None)  # HTTP status
    cause = f"status {status}" if status else getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, CorpusError):
        return VideoError("unreadable", str(error))
    if isinstance(error, FileNotFoundError) or status in _GONE:
        return VideoError("missing", f"{where} does not exist; was it moved after the corpus was listed?")
    if isinstance(error, PermissionError) or status in _REFUSED or getattr(error, "errno", None) in _NOT_A_FILE:
        return VideoError("unreadable", f"{where} cannot be read: {cause}; check its permissions and its path")
    if isinstance(error, ValueError):
        return VideoError("unreadable", f"{where!r} cannot be opened: {cause}; check the address and its server")
    return OSError(f"{where} cannot be read just now: {cause}; check the network and the storage behind it")


def _read(uri: str, where: str, max_bytes: int, storage_options: dict[str, Any] | None) -> tuple[io.BytesIO, str]:
    from blake3 import blake3

    fs, path = open_filesystem(uri, storage_options)
    info = fs.info(path)
    if info.get("type") != "file":  # opening a pipe would block forever
        raise VideoError("unreadable", f"{where} is not a file but of type {info.get('type')!r}; name a video file")
    size, source, hasher = info.get("size") or 0, io.BytesIO(), blake3()
    if size <= max_bytes:
        pieces = fetch_ranges(fs, path, info) if has_ranges(fs, info) else _pieces(fs, path)
        with closing(pieces):
            for piece in pieces:
                hasher.update(piece)
                source.write(piece)
                if source.tell() > max_bytes:
                    break
    if max(size, source.tell()) > max_bytes:
        raise VideoError("too_large", f"{where} has more than {max_bytes} bytes; raise video.max_source_bytes")
    if not source.tell():
        raise VideoError("empty_file", f"{where} has zero bytes; copy it again")
    return source, hasher.hexdigest()


def _pieces(fs: Any, path: str) -> Generator[bytes, None, None]:
    with fs.open(path, "rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece
