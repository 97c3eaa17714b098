"""The only door to a store's files: the root is a local folder, `memory://` or `s3://`, and each object has a key.

Objects are written whole or not at all. Of several writers that `create` the same key, exactly one wins.
"""

import os
import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sttm.errors import ArtifactError, StoreError

Data = bytes | bytearray | memoryview

CHUNK_BYTES = 8 << 20
REQUESTS_IN_FLIGHT = 32
_PART_BYTES = 50 << 20  # of an upload to S3 in parts
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}){0,15}")
_PROTOCOLS = ("s3", "s3a", "memory")  # whose exclusive create is tested; commits rest on it

# The cure that messages give for a damaged artifact.
INDEX_AGAIN = "remove its video with `python -m jobs.store rm` and index the video again"


class MissingObjectError(StoreError):
    """The object asked for does not exist."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing.

    Attributes:
        key: key of the object.
        size_bytes: size of the object.
        modified: when the object was written.
    """

    key: str
    size_bytes: int
    modified: datetime


class Storage:
    """Objects under one root URL, read whole or in byte ranges.

    Every failure is a `StoreError` that names the object; a missing object is a `MissingObjectError`.
    Keys are relative paths of letters, digits and `._=-`; anything else is refused before it reaches a file system.

    Args:
        url: local path, `file://`, `memory://` or `s3://bucket/path`. Credentials come from the environment.
        options: arguments of the fsspec file system.

    Attributes:
        url: the root URL without credentials.

    Raises:
        StoreError: a store cannot be kept at this URL, or the package for its protocol is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        if not url.strip():
            raise StoreError("the store has an empty name; give a folder or a URL such as s3://bucket/path")
        self.url = public_url(url)
        protocol, _, path = url.rpartition("://")
        if protocol in ("", "file", "local"):
            self._backend: _LocalFolder | _ObjectStore = _LocalFolder(Path(os.path.expanduser(path)))
        else:
            self._backend = _ObjectStore(url, protocol, self.url, options or {})

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object; fewer if the object ends earlier, and up to its end if `end` is None."""
        with self._named_errors("read", key):
            return self._backend.read(key, start, end)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several byte ranges [start, end) of one object, fetched in parallel from object storage."""
        buffers = [bytearray(end - start) for start, end in ranges]
        self.read_into(key, [(start, memoryview(buffer)) for (start, _), buffer in zip(ranges, buffers, strict=True)])
        return [bytes(buffer) for buffer in buffers]

    def read_into(self, key: str, parts: Sequence[tuple[int, memoryview]]) -> None:
        """Fill buffers with bytes of one object.

        Args:
            key: key of the object.
            parts: offset in the object and buffer to fill, for each part.

        Raises:
            ArtifactError: the object ends before a buffer is full.
        """
        with self._named_errors("read", key):
            self._backend.read_into(key, parts)

    def size(self, key: str) -> int:
        """Size of an object in bytes."""
        with self._named_errors("look up", key):
            return self._backend.size(key)

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        with suppress(MissingObjectError):
            return self.size(key) >= 0
        return False

    def put(self, key: str, data: Data) -> None:
        """Write a whole object, in place of any earlier one. Readers see the old one or the new one, never a part."""
        with self._named_errors("write", key):
            self._backend.put(key, data)

    def create(self, key: str, data: Data) -> bool:
        """Write a whole object unless there is one already; returns whether the object now holds `data`."""
        with self._named_errors("create", key):
            return self._backend.create(key, data)

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""
        with self._named_errors("delete", key), suppress(FileNotFoundError):
            self._backend.delete(key)

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a folder, sorted; empty if there is no such folder."""
        return [entry.key for entry in self.entries(prefix)]

    def entries(self, prefix: str) -> list[Entry]:
        """Objects below a folder with their sizes and times, sorted by key; empty if there is no such folder.

        Objects whose names are not keys are left out, because other programs made them: desktops leave `.DS_Store`,
        network file systems `.nfs…`, S3 consoles `folder/`.
        """
        with self._named_errors("list", prefix):
            found = [entry for entry in self._backend.entries(prefix) if _KEY.fullmatch(entry.key)]
            return sorted(found, key=lambda entry: entry.key)

    @contextmanager
    def _named_errors(self, action: str, key: str) -> Iterator[None]:
        if not _KEY.fullmatch(key):
            raise StoreError(f"{key[:80]!r} is not an object key: use relative paths of letters, digits and ._=-")
        where = f"{self.url}/{key}"
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError:
            raise MissingObjectError(f"{where} does not exist") from None
        except EOFError as error:
            raise ArtifactError(f"{where} {error}; {INDEX_AGAIN}") from None
        except self._backend.failures as error:
            cure = (
                "check access rights and free space" if isinstance(error, OSError) else "check the URL and credentials"
            )
            raise StoreError(f"cannot {action} {where}: {type(error).__name__}: {error}; {cure}") from error


def public_url(url: str) -> str:
    """The URL without user, password and query, for messages and records."""
    if "://" not in url:
        return url.rstrip("/") or "/"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


class _LocalFolder:
    """A folder of this machine or of a mounted file system with hard links."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str, start: int, end: int | None) -> bytes:
        with open(self.root / key, "rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(max(0, end - start))

    def read_into(self, key: str, parts: Sequence[tuple[int, memoryview]]) -> None:
        with open(self.root / key, "rb", buffering=0) as file:
            for start, buffer in parts:
                file.seek(start)
                done = 0
                while done < len(buffer):
                    count = file.readinto(buffer[done:])
                    if not count:
                        raise EOFError(f"ends at byte {start + done}, expected {start + len(buffer)}")
                    done += count

    def size(self, key: str) -> int:
        return (self.root / key).stat().st_size

    def put(self, key: str, data: Data) -> None:
        with self._temporary(key, data) as temporary:
            os.replace(temporary, self.root / key)

    def create(self, key: str, data: Data) -> bool:
        with self._temporary(key, data) as temporary:
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return (self.root / key).read_bytes() == data
        return True

    def delete(self, key: str) -> None:
        (self.root / key).unlink()

    def entries(self, prefix: str) -> list[Entry]:
        found, folders, root_length = [], [str(self.root / prefix)], len(str(self.root / "_")) - 1
        while folders:
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folders.pop()) as children:
                for child in children:
                    if child.is_dir():
                        folders += [] if child.is_symlink() else [child.path]
                        continue
                    with suppress(FileNotFoundError):  # removed by another process since the folder was read
                        stat = child.stat()
                        modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                        found.append(Entry(child.path[root_length:].replace(os.sep, "/"), stat.st_size, modified))
        return found

    @contextmanager
    def _temporary(self, key: str, data: Data) -> Iterator[Path]:
        """A finished file with `data` in `tmp/`, where no reader looks if the writer is killed."""
        temporary, target_folder = self.root / "tmp" / uuid.uuid4().hex, (self.root / key).parent
        made = list(takewhile(lambda folder: not folder.exists(), (target_folder, *target_folder.parents)))
        temporary.parent.mkdir(parents=True, exist_ok=True)
        target_folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            for folder in (target_folder, *(new.parent for new in made)):
                _sync_folder(folder)
        finally:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut; otherwise a manifest could survive the files that it names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_memory_lock = threading.Lock()


class _ObjectStore:
    """A fsspec file system whose writes are whole objects and whose `create` is atomic."""

    # Clients of object stores raise classes of their own libraries, which this file cannot import.
    failures: tuple[type[Exception], ...] = (Exception,)

    def __init__(self, url: str, protocol: str, shown_url: str, options: Mapping[str, Any]) -> None:
        if protocol not in _PROTOCOLS:
            raise StoreError(f"cannot keep a store at {shown_url}: use a local folder or s3://bucket/path")
        import fsspec

        # With a listing cache, objects that other writers add later would stay invisible.
        settings: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if protocol in ("s3", "s3a"):
            settings["config_kwargs"] = {"max_pool_connections": REQUESTS_IN_FLIGHT}
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url, **{**settings, **options})
        except ImportError as error:
            raise StoreError(f"cannot open {shown_url}: {error}; install it with: pip install 'sttm[s3]'") from None
        self.in_memory = protocol == "memory"

    def read(self, key: str, start: int, end: int | None) -> bytes:
        whole = start == 0 and end is None
        try:
            # Keywords only: the second positional argument of s3fs is a version id.
            return bytes(self.fs.cat_file(self._path(key), **({} if whole else {"start": start, "end": end})))
        except FileNotFoundError:
            raise
        except Exception:  # servers refuse a range that begins where the object ends, each with its own class
            if whole or start < self.size(key):
                raise
            return b""

    def read_into(self, key: str, parts: Sequence[tuple[int, memoryview]]) -> None:
        targets = [
            (start + done, buffer[done : done + CHUNK_BYTES])
            for start, buffer in parts
            for done in range(0, len(buffer), CHUNK_BYTES)
        ]
        starts = [start for start, _ in targets]
        ends = [start + len(buffer) for start, buffer in targets]
        batch = {"batch_size": REQUESTS_IN_FLIGHT} if self.fs.async_impl else {}
        chunks = self.fs.cat_ranges([self._path(key)] * len(targets), starts, ends, on_error="raise", **batch)
        for (start, buffer), chunk in zip(targets, chunks, strict=True):
            if len(chunk) != len(buffer):
                raise EOFError(f"ends at byte {start + len(chunk)}, expected {start + len(buffer)}")
            buffer[:] = chunk

    def size(self, key: str) -> int:
        info = self.fs.info(self._path(key))
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return int(info["size"])

    def put(self, key: str, data: Data) -> None:
        if self.in_memory or len(data) < 2 * _PART_BYTES:
            self.fs.pipe_file(self._path(key), _sendable(data))
        else:
            self.fs.pipe_file(self._path(key), _Parts(data), chunksize=_PART_BYTES)

    def create(self, key: str, data: Data) -> bool:
        path = self._path(key)
        try:
            with _memory_lock if self.in_memory else nullcontext():
                self.fs.pipe_file(path, _sendable(data), mode="create")
        except OSError as error:
            # A lost race is FileExistsError on one server and EINVAL on another. The client's own retry after a lost
            # reply ends here, too: then the object holds `data` already.
            try:
                return bool(self.fs.cat_file(path) == data)
            except FileNotFoundError:
                raise error from None
        return True

    def delete(self, key: str) -> None:
        self.fs.rm_file(self._path(key))

    def entries(self, prefix: str) -> list[Entry]:
        try:
            found = self.fs.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return []
        root_length = len(self._path(""))
        # While another writer adds the first object of a folder, s3fs may list the folder itself as an entry.
        files = [(path, info) for path, info in found.items() if info["type"] == "file"]
        return [Entry(path[root_length:], int(info["size"]), _modified(info)) for path, info in files]

    def _path(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}"


def _modified(info: Mapping[str, Any]) -> datetime:
    """When an object was written. File systems of fsspec have different names and types for this time."""
    time = info.get("LastModified") or info["created"]
    return datetime.fromtimestamp(time, UTC) if isinstance(time, float) else time


class _Parts:
    """Data whose slices are bytes. S3 clients take no memoryview, and so only the parts being sent are copied."""

    def __init__(self, data: Data) -> None:
        self._view = memoryview(data)

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._view[part])


def _sendable(data: Data) -> bytes | bytearray:
    """The data as bytes, because S3 clients take no memoryview."""
    return bytes(data) if isinstance(data, memoryview) else data
