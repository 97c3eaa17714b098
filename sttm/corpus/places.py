"""The places of videos that a URL names: the files of a folder or a glob, one file, or the rows of a manifest."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from sttm.corpus.files import FileInfo, files_below, files_of_glob, fixed_folder, has_wildcard, is_folder, is_video
from sttm.corpus.manifest import ManifestRow, parts_of, read_manifest, read_parts
from sttm.tables import EXTENSIONS
from sttm.urls import extension_of, is_http, is_local, open_filesystem, path_on, redact_url, respelled

LOOKS_AT_ONCE = 16  # a request to an object store takes tens of milliseconds
_MAX_BATCH_ROWS = 4096


class Place(NamedTuple):
    """What a folder, a glob or a manifest says about one video.

    Attributes:
        uri: URI of the file; empty for a row of a manifest that names no video.
        info: what the filesystem says about the file; None if it could not be looked at.
        manifest: the row of the manifest that names the video; None in folders and globs.
    """

    uri: str
    info: FileInfo | None = None
    manifest: ManifestRow | None = None


_Found = tuple[Iterable[Place], Mapping[str, int]]


def find_places(url: str, storage_options: dict[str, Any] | None) -> _Found:
    """Every place in the order of the listing, and how many files were left out, by ending.

    Args:
        url: local path or fsspec URL of a folder, a glob, a file or a manifest.
        storage_options: extra arguments of the fsspec filesystem, e.g. an endpoint.

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


def _listed(fs: Any, infos: list[FileInfo]) -> list[Place]:
    rows = [Place(str(fs.unstrip_protocol(i["name"])), i) for i in infos]
    return sorted(rows, key=lambda row: row.uri)


def _looked_at(rows: Iterable[ManifestRow], storage_options: dict[str, Any] | None) -> Iterator[Place]:
    """The rows of a manifest with the state of their files; many files are looked at at the same time."""
    look, rows = Looker(storage_options), iter(rows)
    count = LOOKS_AT_ONCE  # few at first: the caller may want only the first rows
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        while batch := list(islice(rows, count)):
            count = min(2 * count, _MAX_BATCH_ROWS)
            places = dict.fromkeys((row.uri, row.stripped_uri) for row in batch if not row.fault)
            found = dict(zip(places, pool.map(look.place, places), strict=True))
            for row in batch:
                yield Place("", None, row) if row.fault else Place(*found[row.uri, row.stripped_uri], row)


class Looker:
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
