"""URLs of videos, corpora and tables: the filesystem that serves a URL, absolute URIs, and URLs fit for messages."""

import posixpath
import re
from typing import Any

from sttm.errors import CorpusError

# s3fs keeps listings for the life of the process, which would hide files that other writers have added.
_NO_LISTING_CACHE = {"use_listings_cache": False, "skip_instance_cache": True}
_LONE_SURROGATE, _ESCAPED_BYTE = re.compile(r"[\ud800-\udfff]"), re.compile(r"%u(DC[89A-F][0-9A-F])")


def open_filesystem(url: str, storage_options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """Open the fsspec filesystem that serves a URL.

    Args:
        url: local path or fsspec URL.
        storage_options: extra arguments of the filesystem, e.g. an endpoint.

    Returns:
        The filesystem, and the path on it: absolute, without `..` or a trailing slash.

    Raises:
        CorpusError: the protocol is unknown, or the package that serves it is not installed.
    """
    import fsspec

    protocol, kind = _filesystem_class(url)
    cache = _NO_LISTING_CACHE if protocol in ("s3", "s3a") else {}
    fs = fsspec.filesystem(protocol, **{**kind._get_kwargs_from_urls(url), **cache, **(storage_options or {})})
    return fs, path_on(fs, url)


def _filesystem_class(url: str) -> tuple[str, Any]:
    """The protocol of a URL and the fsspec class that serves it. No instance is made: some connect at once."""
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
    """Whether an fsspec filesystem or class serves the files of this machine."""
    return "file" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def absolute_uri(url: str) -> str:
    """Make a path or URL absolute and normal: `a/../b.mp4` becomes `file:///cwd/b.mp4`.

    A URL of an unknown protocol is returned as it is. The result can always be encoded as UTF-8: a byte of a local file
    name that is not UTF-8 is written as `%uDCFF` (with the byte's own last two digits), and `open_filesystem` finds the
    file by that name.
    """
    try:
        _, kind = _filesystem_class(url)
    except CorpusError:
        return _as_text(url)
    path, starts = _as_text(path_on(kind, url)), tuple(f"{protocol}://" for protocol in _protocols(kind))
    return path if path.startswith(starts) else starts[0] + path


def _as_text(url: str) -> str:
    """The URL with each lone surrogate, by which Python stands for a byte that is not UTF-8, written as `%uDCFF`."""
    return _LONE_SURROGATE.sub(lambda half: f"%u{ord(half[0]):04X}", str(url))


def redact_url(url: str) -> str:
    """A URL fit for messages: without user info, query and fragment, which may hold secrets. Local paths stay whole."""
    url = _as_text(url)
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in ("file", "local", "memory"):
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def extension_of(path: str) -> str:
    """The ending of a file name in lower case, such as `.csv`; the query of a web address does not belong to it."""
    return posixpath.splitext(re.split(r"[?#]", path, maxsplit=1)[0] if is_http(path) else path)[1].lower()


def is_http(uri: str) -> bool:
    """Whether a URI is a web address. The query of a web address is part of the name of the file."""
    return uri.startswith(("http://", "https://"))
