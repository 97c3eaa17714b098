"""Recently used videos, kept on the device and behind it in host memory.

    get(identity) ──► device ──► host memory ──► load: local disk, remote store

Videos that no longer fit on the device move to host memory, which is page-locked where the device is a GPU.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field

from sttm.engine.ready_video import ReadyVideo
from sttm.models.placement import Devices, as_devices
from sttm.query.lru import ByteLRU
from sttm.settings import Settings

Identities = tuple[str, ...]  # the artifacts that a question is about, in the order in which the model sees them
_GB, _HOST_GB = 1e9, 16.0


class CacheConfig(Settings):
    """Memory and disk for videos that are kept for later questions.

    Videos that are being asked about take further memory, and so do the few that are being loaded for the next
    questions.

    Attributes:
        device_gb: GB (10^9 bytes) that kept videos may take on the device that answers.
        host_gb: GB that kept videos may take in page-locked host memory. None means 16 where there is a GPU, and 0
            where there is none: the CPU's memory is the device's memory then.
        disk: folder for copies of a remote store's KV files. None keeps no copies.
        disk_gb: GB that these copies may take; all processes that share the folder share it.
    """

    device_gb: float = Field(default=8.0, ge=0)
    host_gb: float | None = Field(default=None, ge=0)
    disk: Path | None = None
    disk_gb: float = Field(default=64.0, ge=0)

    @property
    def device_bytes(self) -> int:
        """Bytes that kept videos may take on the device that answers."""
        return int(self.device_gb * _GB)

    @property
    def host_bytes(self) -> int:
        """Bytes that kept videos may take in host memory."""
        host_gb = _HOST_GB * torch.cuda.is_available() if self.host_gb is None else self.host_gb
        return int(host_gb * _GB)

    @property
    def disk_bytes(self) -> int:
        """Bytes that copies of remote KV files may take on disk."""
        return int(self.disk_gb * _GB)


@dataclass(frozen=True)
class CacheState:
    """What a worker's caches hold, and how often they were used.

    Attributes:
        size_bytes: bytes held in each tier: `device`, `host`, `disk`.
        gets: how often a video was found in each place. The names are those of `CacheTier.counts`, and `disk`.
    """

    size_bytes: Mapping[str, int]
    gets: Mapping[str, int]


class CacheTier:
    """Loads each video once, however many threads ask for it at once, and keeps those used last. Thread-safe.

    Args:
        load: reads one video, or several as one, onto the device. Every thread that waits for the video gets the
            exception that `load` raises. The next `get` calls `load` again.
        devices: the devices of the model: one for all layers, or one for each layer.
        device_bytes: bytes that kept videos may take on the devices.
        host_bytes: bytes that kept videos may take in host memory.

    Attributes:
        counts: how often a video was found on the `device`, found in `host` memory, found while another thread loaded
            it (`joined`), and loaded (`load`).
    """

    def __init__(
        self, load: Callable[[Identities], ReadyVideo], devices: Devices, device_bytes: int, host_bytes: int = 0
    ) -> None:
        self.counts = {"device": 0, "host": 0, "joined": 0, "load": 0}
        self._load, self._devices = load, as_devices(devices)
        self._lock = threading.Lock()
        self._on_device: ByteLRU[Identities, ReadyVideo] = ByteLRU(device_bytes)
        self._on_host: ByteLRU[Identities, ReadyVideo] = ByteLRU(host_bytes)
        self._loading: dict[Identities, Future[ReadyVideo]] = {}

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes of the videos kept in each tier: `device` and `host`."""
        return {"device": self._on_device.size_bytes, "host": self._on_host.size_bytes}

    def get(self, *identities: str) -> ReadyVideo:
        """The video of one artifact, or of several as one, ready on the device. Raises what `load` raises."""
        with self._lock:
            if video := self._on_device.get(identities):
                self.counts["device"] += 1
                return video
            loading = self._loading.get(identities)
            if is_first := loading is None:
                loading = self._loading[identities] = Future()
            else:
                self.counts["joined"] += 1
        assert loading is not None
        if is_first:
            self._fetch(identities, loading)
        return loading.result()

    def held(self, *identities: str) -> ReadyVideo | None:
        """The video if it is on the device now, else None. Loads nothing and waits for no other thread."""
        with self._lock:
            video = self._on_device.get(identities)
            self.counts["device"] += video is not None
        return video

    def _fetch(self, identities: Identities, loading: "Future[ReadyVideo]") -> None:
        try:
            video = self._from_host(identities) or self._load(identities)
        except BaseException as error:
            with self._lock:
                del self._loading[identities]
            loading.set_exception(error)
            return
        with self._lock:
            dropped = self._on_device.put(identities, video, video.size_bytes)
            del self._loading[identities]
        loading.set_result(video)
        self._demote(dropped)

    def _from_host(self, identities: Identities) -> ReadyVideo | None:
        with self._lock:
            video = self._on_host.get(identities)
            self.counts["load" if video is None else "host"] += 1
        return None if video is None else video.to(self._devices)

    def _demote(self, videos: list[tuple[Identities, ReadyVideo]]) -> None:
        for identities, video in videos:
            with self._lock:
                is_wanted = video.size_bytes <= self._on_host.limit_bytes and identities not in self._on_host
            if is_wanted:
                copy = video.to("cpu", pinned=self._devices[0].type == "cuda")
                with self._lock:
                    self._on_host.put(identities, copy, copy.size_bytes)
