"""One video file: its address on any fsspec filesystem, its bytes, and what their structure tells without a decoder."""

import errno
import io
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from sttm.errors import CorpusError, VideoError

# s3fs remembers listings per process, which hides what other writers added since.
_NO_LISTING_CACHE = {"use_listings_cache": False, "skip_instance_cache": True}
_CHUNK_BYTES = 8 << 20
_NOT_A_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_EBML_MAGIC, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def open_filesystem(url: str, storage_options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path on it: absolute, without `..` or a trailing slash.

    Raises:
        CorpusError: no such protocol, or the package that serves it is not installed.
    """
    import fsspec

    protocol, _ = fsspec.core.split_protocol(str(url))
    protocol = protocol or "file"
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as e:
        cure = "pip install 'sttm[s3]'" if protocol in ("s3", "s3a") else "install the fsspec package that serves it"
        raise CorpusError(f"cannot open {redact_url(url)}: no filesystem for {protocol!r} ({e}); {cure}") from None
    cache = _NO_LISTING_CACHE if protocol in ("s3", "s3a") else {}
    fs = fsspec.filesystem(protocol, **{**kind._get_kwargs_from_urls(url), **cache, **(storage_options or {})})
    path = str(kind._strip_protocol(str(url)))
    return fs, path if is_http(path) else posixpath.normpath(path)


def absolute_uri(url: str) -> str:
    """Normalise a path or URL: `a/../b.mp4` -> `file:///cwd/b.mp4`. An unknown protocol is left as it is."""
    try:
        fs, path = open_filesystem(url)
    except CorpusError:
        return url
    return str(fs.unstrip_protocol(path))


def redact_url(url: str) -> str:
    """A URL for messages: without user info, query or fragment (where tokens hide). Local paths stay whole."""
    protocol, separator, rest = str(url).partition("://")
    if not separator or protocol in ("file", "local", "memory"):
        return str(url)
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def is_http(uri: str) -> bool:
    """Whether a URI is a web address, whose query belongs to it."""
    return uri.startswith(("http://", "https://"))


def read_video_file(uri: str, max_bytes: int, storage_options: dict[str, Any] | None = None) -> tuple[io.BytesIO, str]:
    """The file's bytes, in memory, and their blake3 digest in hex.

    Raises:
        VideoError: `missing`, `unreadable`, `empty_file` or `too_large` (known before anything is downloaded).
    """
    where = redact_url(uri)
    try:
        return _read(uri, where, max_bytes, storage_options)
    except FileNotFoundError:
        raise VideoError("missing", f"{where} does not exist; was it moved after the corpus was listed?") from None
    except CorpusError as e:
        raise VideoError("unreadable", str(e)) from None
    except OSError as e:
        if isinstance(e, PermissionError) or e.errno in _NOT_A_FILE:
            raise VideoError("unreadable", f"{where} cannot be read: {e.strerror or type(e).__name__}") from None
        raise


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


def is_cut_off(data: memoryview) -> bool:
    """Whether an MP4 or Matroska file ends inside one of its outermost elements, or an MP4 before its index."""
    if data[:4] == _EBML_MAGIC:
        return _matroska_end(data) > len(data)
    if bytes(data[4:8]) not in _MP4_FIRST_BOXES:
        return False
    at, kinds = 0, set()
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        kinds.add(kind)
        if size < 8:  # 0: to the end of the file; 2 to 7: nonsense, left to the decoder
            break
        at += size
    return at > len(data) or b"moov" not in kinds


def _matroska_end(data: memoryview) -> int:
    """Where the Segment element says it ends; 0 where its size is unknown, as in live recordings."""
    header, at = _vint(data, 4)
    at += header
    if data[at : at + 4] != _MATROSKA_SEGMENT:
        return 0
    size, start = _vint(data, at + 4)
    return start + size if size else 0


def _vint(data: memoryview, at: int) -> tuple[int, int]:
    """EBML's variable-length integer at a position, and where it ends. All ones mean unknown and come as 0."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length() if first else 8
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (0 if value == (1 << 7 * length) - 1 else value), at + length


def is_entry_point(packet: memoryview, codec: str, extradata: bytes) -> bool:
    """Whether decoding can start at this keyframe packet (MP4 and Matroska layout).

    Muxers also mark H.264 recovery points as keyframes: after one of those, several frames are still wrong.
    """
    if codec not in ("h264", "hevc"):
        return True
    at_length = 4 if codec == "h264" else 21
    if len(extradata) <= at_length or extradata[0] != 1:
        return False
    kinds = _nal_headers(packet, (extradata[at_length] & 3) + 1)
    if codec == "h264":
        return any(k & 31 == 5 for k in kinds)  # IDR
    return any(16 <= (k >> 1) & 63 <= 21 for k in kinds)  # IRAP; leading pictures are seen from the time stamps


def _nal_headers(packet: memoryview, length_bytes: int) -> Iterator[int]:
    at = 0
    while at + length_bytes < len(packet):
        yield packet[at + length_bytes]
        at += length_bytes + int.from_bytes(packet[at : at + length_bytes], "big")
