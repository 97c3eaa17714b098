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
_LONE_SURROGATE, _ESCAPED_BYTE = re.compile(r"[\ud800-\udfff]"), re.compile(r"%u(DC[89A-F][0-9A-F])")
_NOT_A_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
_GONE, _REFUSED = (404, 410), (401, 403)
_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_EBML_MAGIC, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def open_filesystem(url: str, storage_options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path on it: absolute, without `..` or a trailing slash.

    Raises:
        CorpusError: no such protocol, or the package that serves it is not installed.
    """
    import fsspec

    protocol, kind = _filesystem_class(url)
    cache = _NO_LISTING_CACHE if protocol in ("s3", "s3a") else {}
    fs = fsspec.filesystem(protocol, **{**kind._get_kwargs_from_urls(url), **cache, **(storage_options or {})})
    return fs, path_on(fs, url)


def _filesystem_class(url: str) -> tuple[str, Any]:
    """The protocol of a URL and the fsspec class that serves it, of which no instance is made: some connect at once."""
    import fsspec

    protocol = fsspec.core.split_protocol(str(url))[0] or "file"
    try:
        return protocol, fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as e:
        cure = "pip install 'sttm[s3]'" if protocol in ("s3", "s3a") else "install the fsspec package that serves it"
        raise CorpusError(f"cannot open {redact_url(url)}: no filesystem for {protocol!r} ({e}); {cure}") from None


def path_on(fs: Any, url: str) -> str:
    """The path of a URL on its fsspec filesystem or class: absolute, without `..` or a trailing slash."""
    path = str(fs._strip_protocol(str(url)))
    if is_http(path):
        return path
    path = posixpath.normpath(path)
    return _ESCAPED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), path) if is_local(fs) else path


def is_local(fs: Any) -> bool:
    """Whether a fsspec filesystem or class is the machine's own."""
    return "file" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def absolute_uri(url: str) -> str:
    """Normalise a path or URL: `a/../b.mp4` -> `file:///cwd/b.mp4`. An unknown protocol is left as it is.

    A URI is always text: a byte of a local file name that is no UTF-8 reads `%uDCFF`, and opens the same file again.
    """
    try:
        _, kind = _filesystem_class(url)
    except CorpusError:
        return _as_text(url)
    path, starts = _as_text(path_on(kind, url)), tuple(f"{protocol}://" for protocol in _protocols(kind))
    return path if path.startswith(starts) else starts[0] + path


def _as_text(url: str) -> str:
    """The same where it can be encoded; Python has a lone surrogate where a file name has a byte that is no UTF-8."""
    return _LONE_SURROGATE.sub(lambda half: f"%u{ord(half[0]):04X}", str(url))


def redact_url(url: str) -> str:
    """A URL for messages: without user info, query or fragment (where tokens hide). Local paths stay whole."""
    url = _as_text(url)
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in ("file", "local", "memory"):
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def is_http(uri: str) -> bool:
    """Whether a URI is a web address, whose query belongs to it."""
    return uri.startswith(("http://", "https://"))


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
