"""The list of videos to index: a folder, a glob, one file, or a manifest, on any fsspec URL.

    list_corpus("clips/")                       every video below the folder, in sorted order
    list_corpus("s3://bucket/a/**/*.mp4")       a glob; without an extension it finds videos only
    list_corpus("clips/one.mp4")                one file
    list_corpus("s3://bucket/nightly.parquet")  a manifest: a table (Parquet, CSV, JSON, JSON lines)

A manifest has the column `uri` (a URL or path; a relative one counts from the folder of the manifest) and, optionally,
`id`. A folder or glob that holds Parquet files and no video is one manifest in parts, as Spark and Ray write it; such a
folder counts as a file of its name. A row of a manifest that names no video is listed with its fault and fails alone.

A file that does not exist as it is written is looked for under other spellings (`sttm.urls.respelled`): another Unicode
normal form, a `file://` URI with percent escapes, the key of an object with `.`, `..` or empty folder names. A file
that exists as it is written always comes first.

Listing reads no video. Credentials come from the environment; messages show neither user info nor the query of a web
address.
"""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from sttm.errors import CorpusError
from sttm.files import (
    VIDEO_EXTENSIONS,
    FileInfo,
    files_below,
    files_of_glob,
    fixed_folder,
    has_wildcard,
    is_folder,
    is_video,
)
from sttm.manifest import ManifestRow, parts_of, read_manifest, read_parts, row_uri
from sttm.tables import EXTENSIONS
from sttm.urls import absolute_uri, extension_of, is_http, is_local, open_filesystem, path_on, redact_url, respelled

_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ID_RULE = "1 to 128 of the characters A-Z a-z 0-9 . _ -, not starting with . or -"
_LOOKS_AT_ONCE = 16  # a request to an object store takes tens of milliseconds
_BATCH_ROWS = 4096
_SHOWN_ENDINGS = 12


@dataclass(frozen=True)
class VideoRef:
    """Where one video is, and the state of its file when it was listed.

    Attributes:
        uri: absolute, normal URL, e.g. `file:///data/a.mp4` or `s3://bucket/a.mp4`; can be encoded as UTF-8.
        video_id: stable name of the video, safe in paths: the `id` of the manifest, else made of file name and URI.
        name: file name with its extension.
        size_bytes: size of the file; None where it could not be looked at, in which case reading the video says why.
        version: `etag:…` or `mtime:…`, which changes when the file changes; empty where unknown.
        fault: why this row of a manifest names no video; then `uri` is the row itself, such as `s3://b/list.csv:row-7`,
            and reading the video raises the fault. Empty for a video.
    """

    uri: str
    video_id: str
    name: str
    size_bytes: int | None
    version: str
    fault: str = ""

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


@dataclass(frozen=True)
class Listing:
    """What a corpus holds.

    Attributes:
        refs: the videos, and the rows of a manifest that name none.
        left_out: how many files of the folder or glob are not listed because their ending is not one of a video, by
            ending in lower case, such as `.txt`; an empty ending for names without one. Hidden files do not count.
    """

    refs: list[VideoRef]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def left_out_line(self) -> str:
        """The files left out as one line of text; empty if there are none."""
        if not self.left_out:
            return ""
        endings = sorted(self.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [f"{count:,} {ending or 'without an ending'}" for ending, count in endings[:_SHOWN_ENDINGS]]
        more = len(endings) - len(shown)
        total = sum(self.left_out.values())
        return (
            f"{total:,} {'file' if total == 1 else 'files'} left out, whose endings are not those of videos: "
            + ", ".join(shown)
            + (f", and {more} endings more" if more else "")
        )


def list_corpus(url: str, *, limit: int | None = None, storage_options: dict[str, Any] | None = None) -> list[VideoRef]:
    """List the videos that a URL names: those of a folder and its subfolders, a glob, a file, or a manifest.

    The videos of folders and globs are sorted by URI, those of a manifest keep the order of its rows. A URI named twice
    is listed once. In folders, names that start with a dot are skipped.

    Args:
        url: local path or fsspec URL.
        limit: list only the first so many; None lists all.
        storage_options: extra arguments of the fsspec filesystem, e.g. an endpoint.

    Returns:
        The videos. A row of a manifest that names no video, gives an id that is not safe in paths, or gives an id that
        contradicts an earlier row, is among them as a reference with a `fault`.

    Raises:
        CorpusError: the URL does not exist, may not be read, or names no video; a manifest cannot be used.
    """
    return scan_corpus(url, limit=limit, storage_options=storage_options).refs


def scan_corpus(url: str, *, limit: int | None = None, storage_options: dict[str, Any] | None = None) -> Listing:
    """List the videos that a URL names as `list_corpus` does, and count the files that were left out.

    Args:
        url: local path or fsspec URL.
        limit: list only the first so many; None lists all.
        storage_options: extra arguments of the fsspec filesystem, e.g. an endpoint.

    Raises:
        CorpusError: the URL does not exist, may not be read, or names no video; a manifest cannot be used.
    """
    if not url.strip():
        raise CorpusError("the corpus has an empty name; give a folder, a glob, a video or a manifest")
    if limit is not None and limit < 1:
        raise CorpusError(f"limit {limit} is not positive; leave it out to list everything")
    try:
        rows, left_out = _find(url, storage_options)
        listing = Listing(_unique(rows, limit), left_out)
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
    if not listing.refs:
        left = f"; {listing.left_out_line}" if left_out else ""
        raise CorpusError(f"no videos in {redact_url(url)}; looked for {' '.join(VIDEO_EXTENSIONS)}{left}")
    if all(ref.fault for ref in listing.refs):
        raise CorpusError(f"the manifest {redact_url(url)} cannot be used: {listing.refs[0].fault}")
    return listing


def look_again(uris: list[str]) -> list[VideoRef]:
    """The reference of each URI with the present state of its file; `size_bytes` is None where the file is gone."""
    look = _Looker(None)
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        return [VideoRef.from_uri(uri, info=info) for uri, info in zip(uris, pool.map(look.info, uris), strict=True)]


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


class _Row(NamedTuple):
    """What a folder, a glob or a manifest says about one video."""

    uri: str
    info: FileInfo | None = None
    manifest: ManifestRow | None = None


_Found = tuple[Iterable[_Row], Mapping[str, int]]


def _find(url: str, storage_options: dict[str, Any] | None) -> _Found:
    """Every video in the order of the listing, and the count of the files left out by ending.

    Raises:
        FileNotFoundError: there is no such file, and the URL is no glob.
    """
    fs, path = open_filesystem(url, storage_options)
    info = _info(fs, path)
    if info is None:
        for group in respelled(url):
            there = [(other, info) for other in group if (info := _info(fs, path_on(fs, other)))]
            if len(there) == 1:
                url, info = there[0]
                path = path_on(fs, url)
                break
    if info is not None:
        return _find_existing(fs, path, info, url, storage_options)
    if not has_wildcard(path):
        raise FileNotFoundError(url)
    patterns = [path, *(path_on(fs, other) for group in respelled(url) for other in group)]
    found = [(pattern, infos) for pattern in patterns if (infos := files_of_glob(fs, pattern))]
    pattern, infos = found[0] if found else (path, [])
    ending = extension_of(pattern)
    folder = fixed_folder(pattern)
    if ending in EXTENSIONS:
        rows = read_parts(fs, _filled(infos), folder, folder, storage_options)
        return _looked_at(rows, storage_options), {}
    if ending and not has_wildcard(ending):
        return _listed(fs, infos), {}
    return _videos_or_parts(fs, infos, folder, folder, storage_options)


def _info(fs: Any, path: str) -> FileInfo | None:
    """What is at a path; None if nothing is. A broken link or a server's error is for the caller."""
    try:
        return dict(fs.info(path)) if fs.exists(path) else None
    except FileNotFoundError:
        return None


def _find_existing(fs: Any, path: str, info: FileInfo, url: str, storage_options: dict[str, Any] | None) -> _Found:
    if is_folder(fs, path, info, url.endswith("/")):
        empty_names = "" if is_local(fs) or is_http(path) else "/" * (len(url) - len(url.rstrip("/")) - 1)
        infos = (empty_names and files_below(fs, path + empty_names)) or files_below(fs, path)
        return _videos_or_parts(fs, infos, path, posixpath.dirname(path), storage_options)
    if extension_of(path) in EXTENSIONS:
        return _looked_at(read_manifest(url, storage_options), storage_options), {}
    return _listed(fs, [info]), {}


def _videos_or_parts(
    fs: Any, infos: list[FileInfo], folder: str, base: str, storage_options: dict[str, Any] | None
) -> _Found:
    """The videos among files; if there is none, the rows of the manifest whose parts the files are."""
    videos = [info for info in infos if is_video(info["name"])]
    shown = redact_url(str(fs.unstrip_protocol(folder)))
    if not videos and (parts := parts_of(_filled(infos), folder, shown)):
        return _looked_at(read_parts(fs, parts, folder, base, storage_options), storage_options), {}
    left_out = Counter(extension_of(info["name"]) for info in infos if not is_video(info["name"]))
    return _listed(fs, videos), left_out


def _filled(infos: list[FileInfo]) -> list[str]:
    """Names of the files that have bytes: an empty partition of a table is written as an empty file."""
    return [info["name"] for info in infos if info.get("size") != 0]


def _listed(fs: Any, infos: list[FileInfo]) -> list[_Row]:
    rows = [_Row(str(fs.unstrip_protocol(i["name"])), i) for i in infos]
    return sorted(rows, key=lambda row: row.uri)


def _looked_at(rows: Iterable[ManifestRow], storage_options: dict[str, Any] | None) -> Iterator[_Row]:
    """The rows of a manifest with the state of their files; many files are looked at at the same time."""
    look, rows = _Looker(storage_options), iter(rows)
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        while batch := list(islice(rows, _BATCH_ROWS)):
            places = dict.fromkeys((row.uri, row.stripped_uri) for row in batch if not row.fault)
            found = dict(zip(places, pool.map(look.place, places), strict=True))
            for row in batch:
                yield _Row("", None, row) if row.fault else _Row(*found[row.uri, row.stripped_uri], row)


class _Looker:
    """Looks at single files, from several threads."""

    def __init__(self, storage_options: dict[str, Any] | None) -> None:
        self._storage_options = storage_options
        self._filesystems: dict[str, Any] = {}

    def place(self, uris: tuple[str, str]) -> tuple[str, FileInfo | None]:
        """The URI under which the file of a row exists, with its info; the row's last URI and None if there is no file.

        Args:
            uris: the URI as the row has it, and without white space around it.
        """
        for uri in dict.fromkeys(uris):
            if (info := self.info(uri)) is not None:
                return uri, info
        for group in respelled(uris[-1]):
            there = [(uri, info) for uri in group if (info := self.info(uri)) is not None]
            if len(there) == 1:
                return there[0]
        return uris[-1], None

    def info(self, uri: str) -> FileInfo | None:
        """What is at a URI; None if it is no file or cannot be looked at: reading the video will say why."""
        try:
            fs = self._filesystem(uri)
            info = fs.info(path_on(fs, uri))
        except Exception:  # the boundary where one video's fault becomes its row
            return None
        return None if info.get("type") == "directory" else info

    def _filesystem(self, uri: str) -> Any:
        protocol = uri.partition("://")[0]
        if protocol not in self._filesystems:
            self._filesystems[protocol] = open_filesystem(uri, self._storage_options)[0]
        return self._filesystems[protocol]


def _unique(rows: Iterable[_Row], limit: int | None) -> list[VideoRef]:
    """One reference for each URI, in order, and one for each row of a manifest that has a fault."""
    by_uri: dict[str, VideoRef] = {}
    by_id: dict[str, VideoRef] = {}
    for row in rows:
        ref = _ref(row, by_uri, by_id)
        ref = by_uri.setdefault(ref.uri, ref)
        by_id.setdefault(ref.video_id, ref)
        if limit is not None and len(by_uri) == limit:
            break
    return list(by_uri.values())


def _ref(row: _Row, by_uri: dict[str, VideoRef], by_id: dict[str, VideoRef]) -> VideoRef:
    """The reference of a row, which may be one that is listed already, or one with a fault."""
    manifest = row.manifest
    if manifest is None:
        return VideoRef.from_uri(row.uri, info=row.info)
    if manifest.fault:
        return _faulty(manifest, manifest.fault)
    try:
        ref = VideoRef.from_uri(row.uri, video_id=manifest.video_id, info=row.info)
    except CorpusError as error:
        return _faulty(manifest, str(error))
    same, other = by_uri.get(ref.uri), by_id.get(ref.video_id)
    if same is not None and manifest.video_id in (None, same.video_id):
        return same
    if same is not None:
        ids = f"{same.video_id!r} and {manifest.video_id!r}"
        return _faulty(manifest, f"{redact_url(ref.uri)} is listed with two ids: {ids}; keep one")
    if other is not None:
        pair = f"{redact_url(other.uri)} and {redact_url(ref.uri)}"
        return _faulty(manifest, f"video id {ref.video_id!r} is given to two videos: {pair}; ids must be unique")
    return ref


def _faulty(row: ManifestRow, fault: str) -> VideoRef:
    """The reference that stands for a row of a manifest that names no video. Its version changes with the fault."""
    uri = absolute_uri(row_uri(row.table, row.number))
    name = f"{posixpath.basename(row.table)} row {row.number}"
    version = f"fault:{hashlib.sha256(fault.encode('utf-8', 'replace')).hexdigest()[:12]}"
    fault = f"{row.table}: row {row.number}: {fault}".encode("utf-8", "backslashreplace").decode()
    return VideoRef(uri, _derived_id(uri, name.replace(".", "_")), name, None, version, fault)
