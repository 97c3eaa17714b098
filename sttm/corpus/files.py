"""The files that a folder or a glob names, on any fsspec filesystem."""

import os
import re
from collections.abc import Iterator
from typing import Any

from sttm.urls import extension_of, glob_regex, is_http, is_local

# Endings of the containers that `sttm.video` reads. Raw streams and low-resolution copies (.lrv) are left out.
VIDEO_EXTENSIONS = (
    *(".360", ".3g2", ".3gp", ".3gp2", ".3gpp", ".f4v", ".insv", ".m4v", ".mj2", ".mov", ".mp4", ".mp4v", ".qt"),  # MP4
    *(".mk3d", ".mkv", ".webm"),  # Matroska
    *(".avi", ".divx", ".xvid"),
    *(".m2t", ".m2ts", ".mts", ".tod", ".tp", ".trp", ".ts"),  # MPEG transport streams
    *(".evo", ".m2p", ".mod", ".mpe", ".mpeg", ".mpg", ".vob", ".vro"),  # MPEG programme streams
    *(".asf", ".dvr-ms", ".wm", ".wmv"),
    *(".dv", ".flv", ".mxf", ".ogm", ".ogv", ".ogx"),
)
_WILDCARD = re.compile(r"[*?\[]")

FileInfo = dict[str, Any]
"""What fsspec's `info` says about a file: at least `name`, its path on the filesystem, and `type`."""


def is_video(name: str) -> bool:
    """Whether the ending of a file name is one of a video."""
    return extension_of(name) in VIDEO_EXTENSIONS


def has_wildcard(path: str) -> bool:
    """Whether a path that names no file may be a glob."""
    return _WILDCARD.search(path) is not None


def is_folder(fs: Any, path: str, info: FileInfo, with_slash: bool) -> bool:
    """Whether a path is a folder.

    In an object store a path may be both an object and a folder. Then it is the object, unless that has no bytes, as
    the placeholders of folders, or the path was written with a slash at its end.

    Args:
        fs: the fsspec filesystem.
        path: the path without a slash at its end.
        info: what the filesystem says about the path.
        with_slash: whether the path was written with a slash at its end.
    """
    if info["type"] == "file" and (with_slash or not info.get("size")) and not is_http(path):
        return bool(fs.isdir(path))
    return bool(info["type"] == "directory")


def files_below(fs: Any, folder: str) -> list[FileInfo]:
    """All files of a folder and its subfolders without those whose name, or whose folder's name, starts with a dot.

    A slash at the end of the folder stands for an empty folder name inside it, which only object stores have.
    """
    infos = _walk_local(fs, folder) if is_local(fs) else _find(fs, folder)
    return [info for info in infos if _is_file(info) and not _is_hidden(info["name"], folder)]


def files_of_glob(fs: Any, pattern: str) -> list[FileInfo]:
    """The files that match a glob. Hidden ones are matched only by a pattern that names the dot."""
    fixed = fixed_folder(pattern)
    if "//" in pattern and not is_local(fs) and not is_http(pattern):  # fsspec loses the empty folder name
        matches = glob_regex(pattern)
        found = [info for info in _find(fs, fixed) if matches.match(info["name"])]
    else:
        found = [_followed(fs, info) for info in fs.glob(pattern, detail=True).values()]
    files = [info for info in found if _is_file(info)]
    return [info for info in files if "/." in pattern[len(fixed) :] or not _is_hidden(info["name"], fixed)]


def fixed_folder(pattern: str) -> str:
    """The folder of a glob up to its first wildcard: `a/b*/c` -> `a`."""
    return _WILDCARD.split(pattern, maxsplit=1)[0].rpartition("/")[0]


def _find(fs: Any, folder: str) -> list[FileInfo]:
    bucket, _, key = folder.partition("/")
    if "s3" in fs.protocol and (key.startswith("/") or folder.endswith("/")):  # s3fs drops these slashes of a folder
        return list(fs.find(bucket, prefix=f"{key}/", detail=True).values())
    return list(fs.find(folder, detail=True).values())


def _walk_local(fs: Any, folder: str) -> Iterator[FileInfo]:
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


def _followed(fs: Any, info: FileInfo) -> FileInfo:
    """The file that a local link leads to. A broken link stays in the list, so that reading the video can say so."""
    if not info.get("islink"):
        return info
    name = info["name"]
    return dict(fs.info(name)) if os.path.exists(name) else {"name": name, "type": "file"}


def _is_file(info: FileInfo) -> bool:
    """Whether this is no folder, and no empty object that stands for one: its key ends with a slash."""
    return info.get("type") != "directory" and not info["name"].endswith("/")


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") and part.strip(".") for part in name[len(folder) :].split("/"))
