"""The bytes of one video file, read from any fsspec filesystem and digested on the way."""

import errno
import io
from typing import Any

from sttm.errors import CorpusError, VideoError
from sttm.urls import is_http, open_filesystem, redact_url

_CHUNK_BYTES = 8 << 20
_NOT_A_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
_GONE, _REFUSED = (404, 410), (401, 403)


def read_video_file(uri: str, max_bytes: int, storage_options: dict[str, Any] | None = None) -> tuple[io.BytesIO, str]:
    """The file's bytes, in memory, and their blake3 digest in hex.

    Raises:
        VideoError: `missing`, `unreadable`, `empty_file` or `too_large` (known before anything is downloaded).
        OSError: the storage, the network or the machine failed; worth another try.
    """
    where = redact_url(uri)
    try:
        return _read(uri, where, max_bytes, storage_options)
    except (VideoError, MemoryError):
        raise
    except Exception as e:  # clients raise their own libraries' classes, whose texts may quote credentials
        raise _fault(e, where) from None


def _fault(error: Exception, where: str) -> Exception:
    """What an error of a filesystem means: a fault of the file, or (OSError) an outage."""
    if is_http(where) and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec says "not found" whatever a web server's fault is
    status = getattr(error, "status", None)  # of a web server's reply
    cause = f"status {status}" if status else getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, CorpusError):
        return VideoError("unreadable", str(error))
    if isinstance(error, FileNotFoundError) or status in _GONE:
        return VideoError("missing", f"{where} does not exist; was it moved after the corpus was listed?")
    if isinstance(error, PermissionError) or status in _REFUSED or getattr(error, "errno", None) in _NOT_A_FILE:
        return VideoError("unreadable", f"{where} cannot be read: {cause}")
    if isinstance(error, ValueError):
        return VideoError("unreadable", f"{where!r} cannot be opened: {cause}; check the address and what serves it")
    return OSError(f"{where} cannot be read just now: {cause}; check the network and the storage behind it")


def _read(uri: str, where: str, max_bytes: int, storage_options: dict[str, Any] | None) -> tuple[io.BytesIO, str]:
    from blake3 import blake3

    fs, path = open_filesystem(uri, storage_options)
    info = fs.info(path)
    if info.get("type") != "file":  # opening a pipe would wait for ever
        raise VideoError("unreadable", f"{where} is not a file but of type {info.get('type')!r}; name a video file")
    size, source, hasher = info.get("size") or 0, io.BytesIO(), blake3()
    if size <= max_bytes:
        with fs.open(path, "rb") as f:
            while source.tell() <= max_bytes and (chunk := f.read(_CHUNK_BYTES)):
                hasher.update(chunk)
                source.write(chunk)
    if max(size, source.tell()) > max_bytes:
        raise VideoError("too_large", f"{where} has more than {max_bytes} bytes; raise max_source_bytes to take it")
    if not source.tell():
        raise VideoError("empty_file", f"{where} has zero bytes; copy it again")
    return source, hasher.hexdigest()
