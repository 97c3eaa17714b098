"""The index of a video: when each frame is shown, and where decoding may start.

It is built from the packets of the chosen streams alone, before anything is decoded. This file imports no decoder.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sttm.video.coded_picture import Entry
from sttm.video.streams import MATROSKA, MP4, Packet, VideoStream
from sttm.video.timeline import HIDDEN, Timeline, continued

BROADCAST = ("mpegts", "mpeg")  # formats whose clock may jump
_DECORD_CODECS = ("h264", "hevc", "vp9")


class Part(NamedTuple):
    """A stream that holds the video, or a part of it.

    Attributes:
        offset: byte of the file at which the container is opened to read this part; 0 unless streams appear later.
        stream: number of the stream in the container that is opened there.
    """

    offset: int
    stream: int


@dataclass(frozen=True)
class VideoIndex:
    """What the container says about its video, which has N frames and P packets in one part or several.

    Attributes:
        parts: the streams that hold the video, in the order of the file.
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the codec of the first part.
        width: width of a frame as stored, in pixels.
        height: height of a frame as stored, in pixels.
        time_base: seconds per tick.
        pts: int64 [N], time stamps of the frames in ticks, increasing.
        packet_pts: int64 [P], time stamps of the packets in file order; HIDDEN for packets that are not shown.
        key_pts: time stamps of the packets that the container marks as keys, among them points from which a picture is
            renewed bit by bit.
        packet_shift: int64 [P], ticks to add to the time stamps that the file has for a packet.
        packet_picture: int64 [P], number of the frame that each packet belongs to, from 0 on; the two fields of a frame
            may lie in two packets.
        packet_entry: int8 [P], whether decoding can start at each packet (`Entry`); it can at the first one of a part.
        packet_is_disposable: bool [P], whether no other packet needs this one.
        packet_part: int64 [P], position in `parts` of each packet's part, increasing.
        is_selectable: packets may be left out; if not, a part must be decoded from its first packet on.
        is_counted: the time stamps of the packets are in decoding order, as in AVI with B-frames. The n-th frame that
            the decoder gives belongs to the n-th time in `pts`.
        last_frame_s: how long the last frame is shown, in seconds.
        missing_s: seconds that the container declares but the file does not have; None if it declares no duration.
        is_for_decord: whether decord is known to decode this stream correctly.
        is_encrypted: whether the packets say that they are encrypted.
        warnings: sentences about the streams and the clock.
    """

    parts: tuple[Part, ...]
    container: str
    codec: str
    width: int
    height: int
    time_base: float
    pts: NDArray[np.int64]
    packet_pts: NDArray[np.int64]
    key_pts: frozenset[int]
    packet_shift: NDArray[np.int64]
    packet_picture: NDArray[np.int64]
    packet_entry: NDArray[np.int8]
    packet_is_disposable: NDArray[np.bool_]
    packet_part: NDArray[np.int64]
    is_selectable: bool
    is_counted: bool
    last_frame_s: float
    missing_s: float | None
    is_for_decord: bool
    is_encrypted: bool
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """float64 [N], presentation times in seconds after the first frame."""
        return (self.pts - self.pts[0]) * self.time_base

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the first frame to the end of the last frame."""
        return float(self.seconds[-1] + self.last_frame_s)


def index_video(streams: list[VideoStream], others: int = 0) -> VideoIndex | None:
    """Index a video that lies in one stream, or in several that follow each other.

    Args:
        streams: the streams that hold the video, in the order of the file.
        others: how many further video streams the file has.

    Returns:
        The index; None if no stream has a frame that is shown.
    """
    first = streams[0]
    packets = [packet for stream in streams for packet in stream.packets]
    part = np.repeat(np.arange(len(streams)), [len(stream.packets) for stream in streams])
    pts = np.array([p.pts if p.is_shown and p.pts is not None else HIDDEN for p in packets], np.int64)
    dts = np.array([HIDDEN if p.dts is None else p.dts for p in packets], np.int64)
    is_in_decoding_order = (first.container == "avi" and first.has_b_frames) or all(p.pts is None for p in packets)
    is_counted = len(streams) == 1 and is_in_decoding_order and bool((dts != HIDDEN).all())
    if is_counted:
        pts = dts = np.sort(dts)
    if not (pts != HIDDEN).any():
        return None
    timeline = continued(pts, dts, part, tick_s=first.time_base, is_broadcast=first.container in BROADCAST)
    pts = np.where(pts == HIDDEN, HIDDEN, pts + timeline.shift)
    is_known = all(p.pts is not None or p.picture.is_second_field for p in packets)
    last = int(pts.argmax())
    is_even = first.width % 2 == first.height % 2 == 0
    is_simple = first.is_plain and is_even and not others and len(streams) == 1 and not timeline.run.any()
    is_sound = is_known and pts[pts != HIDDEN].min() >= 0 and _is_closed(packets)
    of_decord = first.container in (MP4, MATROSKA) and first.codec in _DECORD_CODECS
    return VideoIndex(
        parts=tuple(Part(stream.offset, stream.number) for stream in streams),
        container=first.container,
        codec=first.codec,
        width=first.width,
        height=first.height,
        time_base=first.time_base,
        pts=np.unique(pts[pts != HIDDEN]),
        packet_pts=pts,
        key_pts=frozenset(pts[[p.is_key for p in packets]].tolist()),
        packet_shift=timeline.shift,
        packet_picture=np.cumsum([not p.picture.is_second_field for p in packets]) - 1,
        packet_entry=_entries(packets, part, timeline),
        packet_is_disposable=_disposable(packets),
        packet_part=part,
        is_selectable=is_known and not is_counted,
        is_counted=is_counted,
        last_frame_s=packets[last].ticks * first.time_base or float(1 / (first.rate or np.inf)),
        missing_s=_missing_s(first, (int(pts[last]) + packets[last].ticks) * first.time_base),
        is_for_decord=of_decord and is_simple and is_sound,
        is_encrypted=any(stream.is_encrypted for stream in streams),
        warnings=_warnings(len(streams), timeline.joins),
    )


def _entries(packets: list[Packet], part: NDArray[np.int64], timeline: Timeline) -> NDArray[np.int8]:
    """int8 [P], whether decoding can start at each packet."""
    entry = np.array([p.picture.entry for p in packets], np.int8)
    if timeline.shift.any():
        is_start = np.diff(timeline.run, prepend=timeline.run[:1]) != 0
        entry[is_start & [p.is_key for p in packets]] = Entry.START
    entry[np.diff(part, prepend=-1) != 0] = Entry.START
    return entry


def _disposable(packets: list[Packet]) -> NDArray[np.bool_]:
    """bool [P], whether no other packet needs this one: pictures of lower temporal layers are needed."""
    layer = np.array([p.picture.layer for p in packets])
    return np.array([p.picture.is_disposable for p in packets]) & (layer == layer.max())


def _is_closed(packets: list[Packet]) -> bool:
    """Whether all groups of pictures are undamaged, shown, and can be decoded without the groups before them."""
    begun = -HIDDEN
    for p in packets:
        if not p.is_clean or p.pts is None:
            return False
        if p.picture.entry >= Entry.OPEN:
            begun = p.pts
        elif p.is_key or p.pts < begun:
            return False
    return True


def _missing_s(stream: VideoStream, video_end_s: float) -> float | None:
    if stream.declared_s is None:
        return None
    reached_s = video_end_s if stream.container == MP4 else stream.reached_s
    return max(0.0, stream.declared_s - reached_s)


def _warnings(parts: int, joins: int) -> tuple[str, ...]:
    found = []
    if parts > 1:
        found.append(f"the video goes on in another stream {parts - 1} times, as after a change of programme")
    if joins:
        found.append(f"the clock of the file starts anew {joins} times; the times go on from there")
    return tuple(found)
