"""The list of videos to index: a folder, a glob, one file, or a manifest, on any fsspec URL.

    list_corpus("clips/")                     every video below the folder, in sorted order
    list_corpus("s3://bucket/a/**/*.mp4")     a glob; without an extension it finds videos only
    list_corpus("clips/one.mp4")              one file
    list_corpus("s3://bucket/nightly.parquet")  a manifest (Parquet, CSV, JSON, JSON lines)

A manifest has the column `uri` (a URL or path; a relative one counts from the folder of the manifest) and, optionally,
`id`. Listing reads no video. Credentials come from the environment; messages show neither user info nor query strings.
"""

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sttm.errors import CorpusError
from sttm.tables import EXTENSIONS, TableError, read_table
from sttm.urls import absolute_uri, extension_of, is_http, is_local, open_filesystem, path_on, redact_url

VIDEO_EXTENSIONS = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
_WILDCARDS = "*?["
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ID_RULE = "1 to 128 of the characters A-Z a-z 0-9 . _ -, not starting with . or -"


class _Row(NamedTuple):
    uri: str
    given_id: str | None
    info: dict[str, Any] | None


@dataclass(frozen=True)
class VideoRef:
    """Where one video is, and the state of its file when it was listed.

    Attributes:
        uri: absolute, normal URL, e.g. `file:///data/a.mp4` or `s3://bucket/a.mp4`; can be encoded as UTF-8.
        video_id: stable name of the video, safe in paths: the `id` of the manifest, else made of file name and URI.
        name: file name with its extension.
        size_bytes: size of the file; None where it could not be looked at, in which case reading the video says why.
        version: `etag:…` or `mtime:…`, which changes when the file changes; empty where unknown.
    """

    uri: str
    video_id: str
    name: str
    size_bytes: int | None
    version: str

    @classmethod
    def from_uri(cls, uri: str, *, video_id: str | None = None, info: dict[str, Any] | None = None) -> "VideoRef":
        """Make the reference of one video.

        Args:
            uri: URL or path.
            video_id: the name of the video; None makes one of file name and URI.
            info: what fsspec's `info` says about the file; None where it was not looked at.

        Raises:
            CorpusError: `video_id` is not safe in paths.
        """
        uri = absolute_uri(uri)
        name = posixpath.basename(re.split(r"[?#]", uri, maxsplit=1)[0] if is_http(uri) else uri)
        if video_id is None:
            video_id = _derived_id(uri, name)
        elif not _SAFE_ID.fullmatch(video_id):
            raise CorpusError(f"video id {video_id[:140]!r} of {redact_url(uri)} is not usable; use {_ID_RULE}")
        size = (info or {}).get("size")
        return cls(uri, video_id, name, None if size is None else int(size), _version(info or {}))


def list_corpus(url: str, *, limit: int | None = None, storage_options: dict[str, Any] | None = None) -> list[VideoRef]:
    """List the videos that a URL names: those of a folder and its subfolders, a glob, a file, or a manifest.

    The videos of folders and globs are sorted by URI, those of a manifest keep the order of its rows. A URI named twice
    is listed once. In folders, names that start with a dot are skipped.

    Args:
        url: local path or fsspec URL.
        limit: list only the first so many; None lists all.
        storage_options: extra arguments of the fsspec filesystem, e.g. an endpoint.

    Raises:
        CorpusError: the URL does not exist, may not be read, or names no video; a manifest cannot be used; two videos
            have one id, or one video has two.
    """
    if not url.strip():
        raise CorpusError("the corpus has an empty name; give a folder, a glob, a video or a manifest")
    if limit is not None and limit < 1:
        raise CorpusError(f"limit {limit} is not positive; leave it out to list everything")
    fs, path = open_filesystem(url, storage_options)
    try:
        rows = _find(fs, path, url, storage_options)
        refs = _unique(rows, limit)
        if refs and refs[0].size_bytes is None:
            refs = _with_infos(refs, storage_options)
    except FileNotFoundError:
        raise CorpusError(f"{redact_url(url)} does not exist; check the path (and, for a bucket, its name)") from None
    except PermissionError as e:
        where = f" ({e.filename})" if isinstance(e.filename, str) and "://" not in e.filename else ""
        raise CorpusError(f"{redact_url(url)} may not be read{where}; check permissions or credentials") from None
    except (CorpusError, MemoryError):
        raise
    except Exception as e:  # clients of object stores raise exceptions of their own libraries
        why = getattr(e, "strerror", None) or type(e).__name__
        cure = "check the network, the credentials and the storage behind it"
        raise CorpusError(f"{redact_url(url)} cannot be listed: {why}; {cure}") from e
    if not refs:
        raise CorpusError(f"no videos in {redact_url(url)}; looked for {' '.join(VIDEO_EXTENSIONS)}")
    return refs


def look_again(uris: list[str]) -> list[VideoRef]:
    """The reference of each URI with the present state of its file; `size_bytes` is None where the file is gone."""
    return _with_infos([VideoRef.from_uri(uri) for uri in uris], None)


def _derived_id(uri: str, name: str) -> str:
    """`file:///data/My clip.mp4` -> `My_clip-<12 hex digits>`: readable, and unique across folders."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "_", posixpath.splitext(name)[0]).strip("_")[:48]
    return f"{stem or 'video'}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _version(info: dict[str, Any]) -> str:
    for kind, keys in (("etag", ("ETag", "etag")), ("mtime", ("mtime", "LastModified", "last_modified", "created"))):
        for key in keys:
            if value := info.get(key):
                value = value.timestamp() if isinstance(value, datetime) else str(value).strip('"')
                return f"{kind}:{value}"
    return ""


def _find(fs: Any, path: str, url: str, storage_options: dict[str, Any] | None) -> Iterable[_Row]:
    """Every file that may be listed, in the order of the listing."""
    extension = extension_of(path)
    if not fs.exists(path):
        if not any(c in path for c in _WILDCARDS):
            raise FileNotFoundError(url)
        return _listed(fs, _glob(fs, path, extension))
    if fs.isdir(path):
        infos = _walk_local(fs, path) if is_local(fs) else fs.find(path, detail=True).values()
        return _listed(fs, [i for i in infos if _is_video(i["name"]) and not _is_hidden(i["name"], path)])
    if extension in EXTENSIONS:
        return _manifest(path, fs, url, storage_options)
    return _listed(fs, [fs.info(path)])


def _glob(fs: Any, pattern: str, extension: str) -> list[dict[str, Any]]:
    fixed = posixpath.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])
    found = [_followed(fs, info) for info in fs.glob(pattern, detail=True).values()]
    if not extension or any(c in extension for c in _WILDCARDS):
        found = [info for info in found if _is_video(info["name"])]
    return [i for i in found if "/." in pattern[len(fixed) :] or not _is_hidden(i["name"], fixed)]


def _listed(fs: Any, infos: list[dict[str, Any]]) -> list[_Row]:
    rows = [_Row(str(fs.unstrip_protocol(i["name"])), None, i) for i in infos if i.get("type") != "directory"]
    return sorted(rows, key=lambda row: row.uri)


def _followed(fs: Any, info: dict[str, Any]) -> dict[str, Any]:
    """The file that a local link leads to. A broken link stays in the list, so that reading the video can say so."""
    if not info.get("islink"):
        return info
    name = info["name"]
    return dict(fs.info(name)) if os.path.exists(name) else {"name": name, "type": "file"}


def _is_video(name: str) -> bool:
    return extension_of(name) in VIDEO_EXTENSIONS


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name[len(folder) :].split("/"))


def _walk_local(fs: Any, folder: str) -> Iterator[dict[str, Any]]:
    """Infos of all files below a local folder. fsspec's own walk skips unreadable folders and follows link loops."""
    seen, todo = {os.path.realpath(folder)}, [folder]
    while todo:
        for entry in fs.ls(todo.pop(), detail=True):
            info = _followed(fs, entry)
            if info["type"] != "directory":
                yield info
            elif (real := os.path.realpath(entry["name"])) not in seen:
                seen.add(real)
                todo.append(entry["name"])


def _manifest(path: str, fs: Any, url: str, storage_options: dict[str, Any] | None) -> Iterator[_Row]:
    try:
        table = read_table(url, ("uri", "id"), storage_options)
        if table.bad_rows:
            raise TableError(f"{table.url}: row {table.bad_rows[0].number}: {table.bad_rows[0].cause}")
        table.require("uri")
    except TableError as error:
        raise CorpusError(f"the manifest cannot be used: {error}") from None
    for number, row in table.rows:
        uri, given = row.get("uri"), row.get("id")
        if not isinstance(uri, str) or not uri.strip():
            raise CorpusError(f"manifest {table.url}: row {number} has no uri; it needs a URL or path in column 'uri'")
        video_id = None if given is None or given == "" else str(given)
        yield _Row(_resolve(fs, posixpath.dirname(path), uri.strip()), video_id, None)


def _resolve(fs: Any, folder: str, uri: str) -> str:
    """The URI of a manifest's row made absolute. A path is one on the filesystem of the manifest."""
    return uri if "://" in uri else str(fs.unstrip_protocol(posixpath.normpath(posixpath.join(folder, uri))))


def _unique(rows: Iterable[_Row], limit: int | None) -> list[VideoRef]:
    """One reference for each URI, in order.

    Raises:
        CorpusError: one URI has two ids, or two URIs have one id.
    """
    by_uri: dict[str, VideoRef] = {}
    by_id: dict[str, VideoRef] = {}
    for uri, given, info in rows:
        ref = VideoRef.from_uri(uri, video_id=given, info=info)
        same = by_uri.setdefault(ref.uri, ref)
        if given is not None and same.video_id != given:
            raise CorpusError(
                f"{redact_url(ref.uri)} is listed with two ids: {same.video_id!r} and {given!r}; keep one"
            )
        other = by_id.setdefault(ref.video_id, same)
        if other is not same:
            pair = f"{redact_url(other.uri)} and {redact_url(ref.uri)}"
            raise CorpusError(f"video id {ref.video_id!r} is given to two videos: {pair}; ids must be unique")
        if limit is not None and len(by_uri) == limit:
            break
    return list(by_uri.values())


def _with_infos(refs: list[VideoRef], storage_options: dict[str, Any] | None) -> list[VideoRef]:
    """Look at each file of a manifest, several at a time: a request to an object store takes tens of milliseconds."""
    filesystems: dict[str, Any] = {}
    for ref in refs:
        protocol = ref.uri.partition("://")[0]
        if protocol not in filesystems:
            try:
                filesystems[protocol] = open_filesystem(ref.uri, storage_options)[0]
            except Exception:  # reading the video will say why
                filesystems[protocol] = None
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(partial(_with_info, filesystems), refs))


def _with_info(filesystems: dict[str, Any], ref: VideoRef) -> VideoRef:
    fs = filesystems[ref.uri.partition("://")[0]]
    try:
        info = fs.info(path_on(fs, ref.uri)) if fs is not None else None
    except Exception:  # the boundary where one video's fault becomes its row: reading the video will say why
        info = None
    if info is not None and info.get("type") == "directory":
        info = None
    return VideoRef.from_uri(ref.uri, video_id=ref.video_id, info=info)
