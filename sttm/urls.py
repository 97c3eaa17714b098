"""Addresses of videos and corpora: one door to fsspec, absolute URIs, and what of them may be shown."""

import posixpath
import re
from typing import Any

from sttm.errors import CorpusError

# s3fs remembers listings per process, which hides what other writers added since.
_NO_LISTING_CACHE = {"use_listings_cache": False, "skip_instance_cache": True}
_LONE_SURROGATE, _ESCAPED_BYTE = re.compile(r"[\ud800-\udfff]"), re.compile(r"%u(DC[89A-F][0-9A-F])")


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
