"""What a container says about its video stream: when each frame is shown and where decoding may start.

Built from the list of packets alone, before anything is decoded; knows the shape of PyAV's objects, imports no decoder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sttm.video.container import is_entry_point

HIDDEN = -(1 << 62)  # in place of the pts of a packet that is not shown
_MP4, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
_WITH_DURATION = (_MP4, _MATROSKA, "avi", "asf", "flv")  # FFmpeg guesses the duration of the others
_DECORD_CODECS = ("h264", "hevc", "vp9")


@dataclass(frozen=True)
class VideoIndex:
    """What the container says about its video stream, N frames in presentation order; nothing is decoded for it."""

    stream: int
    container: str
    codec: str
    width: int
    height: int
    time_base: float  # seconds per tick
    pts: NDArray[np.int64]  # [N] ticks, increasing
    packet_pts: NDArray[np.int64]  # [P] per packet in file order; HIDDEN where not shown
    packet_gop: NDArray[np.int64]  # [P] number of the group of packets that decodes alone, from 0; one group if unsure
    last_frame_s: float  # how long the last frame stays
    missing_s: float | None  # declared by the container but not in the file; None if it declares nothing
    is_for_decord: bool

    @property
    def seconds(self) -> NDArray[np.float64]:
        """float64 [N], presentation times after the first frame."""
        return (self.pts - self.pts[0]) * self.time_base

    @property
    def duration_s(self) -> float:
        """From the first frame's start to the last frame's end."""
        return float(self.seconds[-1] + self.last_frame_s)


class _Packet(NamedTuple):
    pts: int | None
    ticks: int  # duration
    is_key: bool
    is_entry: bool
    is_clean: bool  # neither damaged nor hidden by an edit list
    is_shown: bool


def index_stream(container: Any, stream: Any, demuxed: Iterable[Any]) -> VideoIndex | None:
    """Index one video stream of an open PyAV container from the packets of all its streams; None without frames."""
    context, tick_s = stream.codec_context, float(stream.time_base)
    packets, reached_s = _packets(stream, demuxed)
    shown = sorted((p.pts, p.ticks) for p in packets if p.is_shown and p.pts is not None)
    if not shown:
        return None
    kind = container.format.name
    pts, gop = _tables(packets, kind in (_MP4, _MATROSKA))
    declared_s, reached_s = _declared(container, stream, reached_s, (shown[-1][0] + shown[-1][1]) * tick_s)
    is_simple = len(container.streams.video) == 1 and context.pix_fmt == "yuv420p" and context.color_range != 2
    is_sound = all(p.is_clean and p.is_entry >= p.is_key for p in packets) and shown[0][0] >= 0 and gop.max() >= 0
    return VideoIndex(
        stream=stream.index,
        container=kind,
        codec=context.name,
        width=context.width,
        height=context.height,
        time_base=tick_s,
        pts=np.unique(pts[pts != HIDDEN]),
        packet_pts=pts,
        packet_gop=np.maximum(gop, 0),
        last_frame_s=shown[-1][1] * tick_s or float(1 / (stream.average_rate or np.inf)),
        missing_s=None if declared_s is None else max(0.0, declared_s - reached_s),
        is_for_decord=kind in (_MP4, _MATROSKA) and context.name in _DECORD_CODECS and is_simple and is_sound,
    )


def _packets(stream: Any, demuxed: Iterable[Any]) -> tuple[list[_Packet], float]:
    """The stream's packets in file order, and the latest end in seconds over all streams."""
    packets, reached_s, extradata = [], 0.0, bytes(stream.codec_context.extradata or b"")
    for p in demuxed:
        if not p.size:
            continue
        if p.pts is not None and p.time_base:
            reached_s = max(reached_s, float((p.pts + (p.duration or 0)) * p.time_base))
        if p.stream_index == stream.index:
            is_entry = p.is_keyframe and is_entry_point(memoryview(p), stream.codec_context.name, extradata)
            is_clean = not (p.is_corrupt or p.is_discard)
            packets.append(_Packet(p.pts, p.duration or 0, p.is_keyframe, is_entry, is_clean, not p.is_discard))
    return packets, reached_s


def _tables(packets: list[_Packet], is_indexed: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per packet: pts (or hidden), and its group that decodes alone; groups are all -1 where that is not sure."""
    pts = np.array([p.pts if p.is_shown and p.pts is not None else HIDDEN for p in packets], np.int64)
    gop = np.cumsum([p.is_entry for p in packets]) - 1
    sure = is_indexed and gop[0] == 0 and all(p.pts is not None for p in packets)
    if sure:
        raw = np.array([p.pts for p in packets], np.int64)
        sure = bool((raw >= raw[[p.is_entry for p in packets]][gop]).all())  # else an open GOP
    return pts, gop if sure else np.full(len(packets), -1)


def _declared(container: Any, stream: Any, reached_s: float, video_end_s: float) -> tuple[float | None, float]:
    """(declared, reached) end in seconds. Only containers that store a duration count: FFmpeg guesses the others."""
    kind = container.format.name
    if kind == _MP4:  # without a sample count it is fragmented, and its duration merely what was found
        return (float(stream.duration * stream.time_base) if stream.frames and stream.duration else None), video_end_s
    if kind in _WITH_DURATION and container.duration:
        return container.duration / 1e6, reached_s
    return None, reached_s
