"""The index of a video stream: when each frame is shown, and where decoding may start.

It is built from the list of packets alone, before anything is decoded. This file imports no decoder and takes objects
with the attributes of PyAV's containers, streams and packets.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sttm.video.container import is_entry_point

HIDDEN = -(1 << 62)  # stands in place of the time stamp of a packet that is not shown
_MP4, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
_WITH_DURATION = (_MP4, _MATROSKA, "avi", "asf", "flv")  # for other containers FFmpeg guesses the duration
_DECORD_CODECS = ("h264", "hevc", "vp9")


@dataclass(frozen=True)
class VideoIndex:
    """What the container says about its video stream, which has N frames and P packets.

    Attributes:
        stream: number of the stream in the container.
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the codec.
        width: width of a frame as stored, in pixels.
        height: height of a frame as stored, in pixels.
        time_base: seconds per tick.
        pts: int64 [N], time stamps of the frames in ticks, increasing.
        packet_pts: int64 [P], time stamps of the packets in file order; HIDDEN for packets that are not shown.
        packet_gop: int64 [P], number of each packet's GOP, a group of packets that can be decoded alone, from 0 on. If
            the groups are not certain, all packets are in group 0.
        last_frame_s: how long the last frame is shown, in seconds.
        missing_s: seconds that the container declares but the file does not have; None if it declares no duration.
        is_for_decord: whether decord is known to decode this stream correctly.
    """

    stream: int
    container: str
    codec: str
    width: int
    height: int
    time_base: float
    pts: NDArray[np.int64]
    packet_pts: NDArray[np.int64]
    packet_gop: NDArray[np.int64]
    last_frame_s: float
    missing_s: float | None
    is_for_decord: bool

    @property
    def seconds(self) -> NDArray[np.float64]:
        """float64 [N], presentation times in seconds after the first frame."""
        return (self.pts - self.pts[0]) * self.time_base

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the first frame to the end of the last frame."""
        return float(self.seconds[-1] + self.last_frame_s)


class _Packet(NamedTuple):
    pts: int | None
    ticks: int  # duration
    is_key: bool
    is_entry: bool  # decoding can start here
    is_clean: bool  # neither damaged nor hidden by an edit list
    is_shown: bool


def index_stream(container: Any, stream: Any, demuxed: Iterable[Any]) -> VideoIndex | None:
    """Index one video stream of an open PyAV container.

    Args:
        container: the container.
        stream: the video stream.
        demuxed: the packets of all streams of the container.

    Returns:
        The index; None if the stream has no frame that is shown.
    """
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
    """The packets of the stream in file order, and the latest end of any packet of any stream in seconds."""
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
    """For each packet [P]: its time stamp or HIDDEN, and its GOP. If the GOPs are not certain, all of them are -1."""
    pts = np.array([p.pts if p.is_shown and p.pts is not None else HIDDEN for p in packets], np.int64)
    gop = np.cumsum([p.is_entry for p in packets]) - 1
    sure = is_indexed and gop[0] == 0 and all(p.pts is not None for p in packets)
    if sure:
        raw = np.array([p.pts for p in packets], np.int64)
        sure = bool((raw >= raw[[p.is_entry for p in packets]][gop]).all())  # otherwise a GOP is open
    return pts, gop if sure else np.full(len(packets), -1)


def _declared(container: Any, stream: Any, reached_s: float, video_end_s: float) -> tuple[float | None, float]:
    """The end in seconds that the container declares, and the end that its packets reach.

    The declared end is None for containers that store no duration, because FFmpeg only guesses it for them.
    """
    kind = container.format.name
    if kind == _MP4:  # a fragmented MP4 has no sample count, and its duration is only that of the packets found
        return (float(stream.duration * stream.time_base) if stream.frames and stream.duration else None), video_end_s
    if kind in _WITH_DURATION and container.duration:
        return container.duration / 1e6, reached_s
    return None, reached_s
