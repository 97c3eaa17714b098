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
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sttm.corpus.files import VIDEO_EXTENSIONS
from sttm.corpus.manifest import ManifestRow, row_uri
from sttm.corpus.places import LOOKS_AT_ONCE, Looker, Place, find_places
from sttm.errors import CorpusError
from sttm.urls import absolute_uri, is_http, redact_url

_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ID_RULE = "1 to 128 of the characters A-Z a-z 0-9 . _ -, not starting with . or -"
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
        places, left_out = find_places(url, storage_options)
        listing = Listing(_unique(places, limit), left_out)
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
    look = Looker(None)
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
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


def _unique(places: Iterable[Place], limit: int | None) -> list[VideoRef]:
    """One reference for each URI, in order, and one for each row of a manifest that has a fault."""
    by_uri: dict[str, VideoRef] = {}
    by_id: dict[str, VideoRef] = {}
    for place in places:
        ref = _ref(place, by_uri, by_id)
        ref = by_uri.setdefault(ref.uri, ref)
        by_id.setdefault(ref.video_id, ref)
        if limit is not None and len(by_uri) == limit:
            break
    return list(by_uri.values())


def _ref(place: Place, by_uri: dict[str, VideoRef], by_id: dict[str, VideoRef]) -> VideoRef:
    """The reference of a place, which may be one that is listed already, or one with a fault."""
    manifest = place.manifest
    if manifest is None:
        return VideoRef.from_uri(place.uri, info=place.info)
    if manifest.fault:
        return _faulty(manifest, manifest.fault)
    try:
        ref = VideoRef.from_uri(place.uri, video_id=manifest.video_id, info=place.info)
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
