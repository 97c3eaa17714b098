"""URLs of videos, corpora and tables: the filesystem that serves a URL, absolute URIs, and URLs fit for messages.

Only web addresses have a query and a fragment. In a local path and in the key of an object, `#`, `?`, `%` and spaces
are ordinary characters, and an empty folder name as in `a//b` belongs to the key of an object.
"""

import functools
import os
import posixpath
import re
import unicodedata
from typing import Any
from urllib.parse import unquote_to_bytes

from sttm.errors import CorpusError

# s3fs keeps listings for the life of the process, which would hide files that other writers have added.
_NO_LISTING_CACHE = {"use_listings_cache": False, "skip_instance_cache": True}
_LONE_SURROGATE, _ESCAPED_BYTE = re.compile(r"[\ud800-\udfff]"), re.compile(r"%u(DC[89A-F][0-9A-F])")
_PERCENT_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
# The version of an object in a versioned bucket of S3; a short text or one with a file ending belongs to the key.
_VERSION = re.compile(r"\?versionId=(null|(?!.*\.\w{2,4}$)[\w.-]{20,})$")
_CHAINED = re.compile(r"::(?=[A-Za-z0-9+]+://)")
# Protocols whose URLs have no query, so that nothing after the host is secret.
_WITHOUT_QUERY = (
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos"),
    *("hdfs", "sftp", "ssh", "ftp", "smb", "hf", "dbfs", "lakefs"),
)
_CONTAINER_BEFORE_AT = ("az", "abfs", "abfss")  # abfs://container@account.dfs.core.windows.net/path


def open_filesystem(url: str, storage_options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """Open the fsspec filesystem that serves a URL.

    Args:
        url: local path or fsspec URL.
        storage_options: extra arguments of the filesystem, e.g. an endpoint.

    Returns:
        The filesystem, and the path on it, as `path_on` gives it.

    Raises:
        CorpusError: the protocol is unknown, or the package that serves it is not installed.
    """
    protocol, kind = _filesystem_class(url)
    cache = _NO_LISTING_CACHE if protocol in ("s3", "s3a") else {}
    fs = kind(**{**kind._get_kwargs_from_urls(url), **cache, **(storage_options or {})})
    return fs, path_on(fs, url)


def _filesystem_class(url: str) -> tuple[str, Any]:
    """The protocol of a URL and the fsspec class that serves it. No instance is made: some connect at once."""
    import fsspec

    url = str(url)
    protocol = "file" if url.startswith("/") else fsspec.core.split_protocol(url)[0] or "file"
    try:
        return protocol, _class_of(protocol)
    except (ImportError, ValueError) as e:
        cure = "pip install 'sttm[s3]'" if protocol in ("s3", "s3a") else "install the fsspec package that serves it"
        raise CorpusError(f"cannot open {redact_url(url)}: no filesystem for {protocol!r} ({e}); {cure}") from None


@functools.cache
def _class_of(protocol: str) -> Any:
    import fsspec

    kind = fsspec.get_filesystem_class(protocol)
    return _with_whole_keys(kind) if protocol in ("s3", "s3a") else kind


def _with_whole_keys(kind: Any) -> Any:
    """The filesystem class of s3fs, but `?versionId=` in a key is cut off only where the id of a version follows."""

    class WholeKeys(kind):
        @staticmethod
        def _get_kwargs_from_urls(urlpath: str) -> dict[str, Any]:
            return dict(kind._get_kwargs_from_urls(urlpath)) if _VERSION.search(urlpath) else {}

        def split_path(self, path: str) -> tuple[str, str, str | None]:
            bucket, key, version = super().split_path(path)
            _, mark, rest = path.partition("?versionId=")
            if not mark or not bucket or _VERSION.search(path):
                return bucket, key, version
            return bucket, key.rstrip("/") + mark + rest, None

    return WholeKeys


def path_on(fs: Any, url: str) -> str:
    """The path of a URL on its fsspec filesystem or class, without a slash at its end.

    A local path is absolute and normal: without `.`, `..` and empty folder names. The path of any other filesystem
    stays as it is, because `a//b` and `a/b` are two objects.
    """
    path = str(fs._strip_protocol(str(url)))
    if not is_local(fs):
        return path
    return _ESCAPED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), posixpath.normpath(path))


def is_local(fs: Any) -> bool:
    """Whether an fsspec filesystem or class serves the files of this machine."""
    return "file" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def absolute_uri(url: str) -> str:
    """Make a path or URL absolute, and a local path also normal: `a/../b.mp4` becomes `file:///cwd/b.mp4`.

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


def respelled(url: str) -> list[tuple[str, ...]]:
    """Other spellings of a URL, for a file that does not exist under the URL itself.

    Returns:
        Groups of URLs, the likelier group first. A file is meant if it is the only one of its group that exists.
        A group has the two Unicode normal forms (NFC, NFD) of one spelling. The spellings are the URL itself, then
        `file://` with its percent escapes resolved, and the key of an object without `.`, `..` and empty folder names.
        Web addresses have no other spelling.
    """
    if is_http(url):
        return []
    forms = [url]
    if url.startswith("file:"):
        forms.append(_unescaped(url))
    elif "://" in url and not url.startswith(("/", "local:")):
        protocol, _, path = url.partition("://")
        forms.append(f"{protocol}://{posixpath.normpath(path)}")
    groups: list[tuple[str, ...]] = []
    for form in dict.fromkeys(forms):
        normal_forms = [unicodedata.normalize(kind, form) for kind in ("NFC", "NFD")]
        groups.append((form,) if form != url else ())
        groups.append(tuple(dict.fromkeys(other for other in normal_forms if other not in (form, url))))
    return [group for group in groups if group]


def glob_regex(pattern: str) -> re.Pattern[str]:
    """The regular expression that whole paths match which an fsspec glob matches."""
    import fsspec.utils

    return re.compile(fsspec.utils.glob_translate(pattern))


def _unescaped(url: str) -> str:
    """A `file:` URL without percent escapes and host: `file://localhost/a%20b` becomes `file:///a b`."""
    path = re.sub(r"^file:(//(localhost(?=/))?)?", "", url)
    return "file://" + _PERCENT_ESCAPES.sub(lambda escapes: os.fsdecode(unquote_to_bytes(escapes[0])), path)


def _as_text(url: str) -> str:
    """The URL with each lone surrogate, by which Python stands for a byte that is not UTF-8, written as `%uDCFF`."""
    return _LONE_SURROGATE.sub(lambda half: f"%u{ord(half[0]):04X}", str(url))


def redact_url(url: str) -> str:
    """A URL fit for messages: without user info, and a web address without query and fragment, which may hold secrets.

    Local paths and the keys of objects are shown whole, so that the text that is shown finds the file again.
    """
    url = _as_text(url)
    protocol, separator, rest = url.partition("://")
    if not separator or url.startswith("/") or protocol in ("file", "local", "memory"):
        return url
    if protocol not in _WITHOUT_QUERY:
        link, *inner = _CHAINED.split(url, maxsplit=1)
        if inner:  # such as zip://a.mp4::https://host/a.zip
            return f"{redact_url(link)}::{redact_url(inner[0])}"
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if protocol not in _CONTAINER_BEFORE_AT:
        host = host.rpartition("@")[2]
    return f"{protocol}://{host}{slash}{path}"


def extension_of(path: str) -> str:
    """The ending of a file name in lower case, such as `.csv`; the query of a web address does not belong to it."""
    return posixpath.splitext(re.split(r"[?#]", path, maxsplit=1)[0] if is_http(path) else path)[1].lower()


def is_http(uri: str) -> bool:
    """Whether a URI is a web address. The query of a web address is part of the name of the file."""
    return uri.startswith(("http://", "https://"))
