"""Videos at hand: those used last on the device, then in (page-locked) host memory, then wherever they load from.

get(identity) ──► device ──► host ──► load: local disk, remote store
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

_GB, _HOST_GB = 1e9, 16.0


class CacheConfig(Settings):
    """How much of each kind of memory videos may take that are kept for later questions.

    Videos being answered about come on top while they are, and those loaded for the next questions: at most as many as
    `ScheduleConfig.loaders`.

    Attributes:
        device_gb: GB (10^9 bytes) that videos may take in the memory of the device that answers.
        host_gb: GB that videos may take in page-locked host memory behind a GPU. None means 16 where there is a GPU,
            and 0 elsewhere: on the CPU both memories are the same.
        disk: folder for copies of a remote store's KV files. None keeps no copies.
        disk_gb: GB that these copies may take; all processes that share the folder share it.
    """

    device_gb: float = Field(default=8.0, ge=0)
    host_gb: float | None = Field(default=None, ge=0)
    disk: Path | None = None
    disk_gb: float = Field(default=64.0, ge=0)

    @property
    def device_bytes(self) -> int:
        """Bytes that videos may take on the device that answers."""
        return int(self.device_gb * _GB)

    @property
    def host_bytes(self) -> int:
        """Bytes that videos may take in host memory."""
        host_gb = _HOST_GB * torch.cuda.is_available() if self.host_gb is None else self.host_gb
        return int(host_gb * _GB)

    @property
    def disk_bytes(self) -> int:
        """Bytes that copies of remote files may take on disk."""
        return int(self.disk_gb * _GB)


@dataclass(frozen=True)
class CacheState:
    """What a worker has at hand.

    Attributes:
        size_bytes: of those kept, by tier: `device`, `host`, `disk`.
        gets: how often videos were found in a tier, or where else, as `CacheTier.counts`; and on `disk`.
    """

    size_bytes: Mapping[str, int]
    gets: Mapping[str, int]


class CacheTier:
    """Loads each video once, however many ask for it at once, and keeps those used last. Thread-safe.

    Args:
        load: reads a video by identity onto the device; what it raises reaches all who wait, and is not remembered.
        devices: where answers are computed: one, or one a layer.
        device_bytes, host_bytes: as in `CacheConfig`.

    Attributes:
        counts: how often `get` or `held` found the video on the `device`, and `get` found it in `host` memory, `joined`
            a load under way, or had to `load` it.
    """

    def __init__(
        self, load: Callable[[str], ReadyVideo], devices: Devices, device_bytes: int, host_bytes: int = 0
    ) -> None:
        self.counts = {"device": 0, "host": 0, "joined": 0, "load": 0}
        self._load, self._devices = load, as_devices(devices)
        self._lock = threading.Lock()
        self._on_device: ByteLRU[ReadyVideo] = ByteLRU(device_bytes)
        self._on_host: ByteLRU[ReadyVideo] = ByteLRU(host_bytes)
        self._loading: dict[str, Future[ReadyVideo]] = {}

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes kept, by tier."""
        return {"device": self._on_device.size_bytes, "host": self._on_host.size_bytes}

    def get(self, identity: str) -> ReadyVideo:
        """The video, ready on the device; raises what `load` raises."""
        with self._lock:
            if video := self._on_device.get(identity):
                self.counts["device"] += 1
                return video
            loading = self._loading.get(identity)
            if is_first := loading is None:
                loading = self._loading[identity] = Future()
            else:
                self.counts["joined"] += 1
        assert loading is not None
        if is_first:
            self._bring(identity, loading)
        return loading.result()

    def held(self, identity: str) -> ReadyVideo | None:
        """The video if it is on the device now, which counts as found there; loads nothing and waits for nobody."""
        with self._lock:
            video = self._on_device.get(identity)
            self.counts["device"] += video is not None
        return video

    def _bring(self, identity: str, loading: "Future[ReadyVideo]") -> None:
        try:
            video = self._from_host(identity) or self._load(identity)
        except BaseException as error:
            with self._lock:
                del self._loading[identity]
            loading.set_exception(error)
            return
        with self._lock:
            gone = self._on_device.put(identity, video, video.size_bytes)
            del self._loading[identity]
        loading.set_result(video)
        self._demote(gone)

    def _from_host(self, identity: str) -> ReadyVideo | None:
        with self._lock:
            video = self._on_host.get(identity)
            self.counts["load" if video is None else "host"] += 1
        return None if video is None else video.to(self._devices)

    def _demote(self, videos: list[tuple[str, ReadyVideo]]) -> None:
        for identity, video in videos:
            with self._lock:
                is_wanted = video.size_bytes <= self._on_host.limit_bytes and identity not in self._on_host
            if is_wanted:
                copy = video.to("cpu", pinned=self._devices[0].type == "cuda")
                with self._lock:
                    self._on_host.put(identity, copy, copy.size_bytes)
