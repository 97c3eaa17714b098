"""The video streams of a file: what their packets say, and which of them is the video.

This file imports no decoder and takes objects with the attributes of PyAV's containers, streams and packets.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sttm.video.coded_picture import START, CodedPicture, Entry
from sttm.video.picture_readers import picture_reader

MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
_WITH_DURATION = (MP4, MATROSKA, "avi", "asf", "flv")  # for other containers FFmpeg guesses the duration
_ENCRYPTED_TAGS = ("drmi", "encv")  # codec tags of MP4 for encrypted video
_DEFAULT = 1  # the bit of a stream's disposition
_STILL_PACKETS, _STILL_RATIO = 10, 0.05  # a stream with fewer packets, and this share of another's, is a still


class Packet(NamedTuple):
    """One packet of a video stream; times in ticks.

    Attributes:
        ticks: duration, 0 if it is not known.
        pos: byte at which the packet begins, counted from where the container was opened; -1 if it is not known.
        picture: what its headers say.
        is_clean: neither damaged nor hidden by an edit list.
        is_shown: not hidden by an edit list.
    """

    pts: int | None
    dts: int | None
    ticks: int
    pos: int
    is_key: bool
    picture: CodedPicture
    is_clean: bool
    is_shown: bool

    @property
    def is_frame(self) -> bool:
        """Whether a frame that is shown begins with this packet."""
        return self.is_shown and not self.picture.is_second_field


@dataclass(frozen=True)
class VideoStream:
    """A video stream of an open container, with its packets.

    Attributes:
        offset: byte of the file at which the container was opened.
        number: number of the stream in the container.
        id: identifier of the stream in its format, such as the PID of a transport stream.
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the codec.
        width, height: pixels of a frame as stored; 0 if the container does not say.
        time_base: seconds per tick.
        rate: average frames per second; None if it is not known.
        has_b_frames: whether frames are stored in another order than shown.
        is_plain: 8-bit 4:2:0 with limited range.
        is_default: the container marks the stream as the one to play.
        is_encrypted: the container or a packet says that the stream is encrypted.
        declared_s: the end in seconds that the container declares; None if it stores none.
        reached_s: the latest end of any packet of any stream, in seconds.
        packets: the packets in file order.
    """

    offset: int
    number: int
    id: int
    container: str
    codec: str
    width: int
    height: int
    time_base: float
    rate: float | None
    has_b_frames: bool
    is_plain: bool
    is_default: bool
    is_encrypted: bool
    declared_s: float | None
    reached_s: float
    packets: list[Packet] = field(repr=False)


def read_streams(container: Any, candidates: list[Any], demuxed: Iterable[Any], offset: int = 0) -> list[VideoStream]:
    """Read the packets of the video streams of an open PyAV container.

    Args:
        container: the container.
        candidates: the video streams.
        demuxed: the packets of all streams of the container.
        offset: byte of the file at which the container was opened.

    Returns:
        The candidates that have packets, in the order of the container.
    """
    lists = {stream.index: _PacketList(stream, container.format.name) for stream in candidates}
    ends: dict[int, int] = {}
    for p in demuxed:
        if not p.size:
            continue
        number, pts = p.stream_index, p.pts
        if pts is not None and (end := pts + (p.duration or 0)) > ends.get(number, -1):
            ends[number] = end
        if (found := lists.get(number)) is not None:
            found.add(p)
    bases = {stream.index: stream.time_base for stream in container.streams}
    reached_s = max((float(end * bases[number]) for number, end in ends.items() if bases.get(number)), default=0.0)
    kind = container.format.name
    return [
        VideoStream(
            offset=offset,
            number=stream.index,
            id=stream.id,
            container=kind,
            codec=stream.codec_context.name,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            time_base=float(stream.time_base),
            rate=float(stream.average_rate) if stream.average_rate else None,
            has_b_frames=stream.codec_context.has_b_frames,
            is_plain=stream.codec_context.pix_fmt == "yuv420p" and stream.codec_context.color_range != 2,
            is_default=bool(int(stream.disposition) & _DEFAULT),
            is_encrypted=lists[stream.index].is_encrypted or _says_encrypted(stream),
            declared_s=_declared_s(container, stream),
            reached_s=reached_s,
            packets=lists[stream.index].packets,
        )
        for stream in candidates
        if lists[stream.index].packets
    ]


class _PacketList:
    """Collects the packets of one stream, in file order."""

    def __init__(self, stream: Any, container: str) -> None:
        self.packets: list[Packet] = []
        self.is_encrypted = False
        self._codec = stream.codec_context.name
        self._keys_are_entries = container in (MP4, MATROSKA) or stream.codec_context.codec.intra_only
        self._reader = picture_reader(self._codec, bytes(stream.codec_context.extradata or b""), self._keys_are_entries)
        self._is_altered = False

    def add(self, p: Any) -> None:
        is_key, is_discard = p.is_keyframe, p.is_discard
        picture = self._reader.read(memoryview(p), is_key)
        if is_key:
            self.is_encrypted |= p.has_sidedata("encryption_info")
        if p.has_sidedata("new_extradata") and self.packets:
            # The stream has another header from here on, which a decoder that starts later would miss.
            header = bytes(p.get_sidedata("new_extradata"))
            self._reader = picture_reader(self._codec, header, self._keys_are_entries)
            self._is_altered, picture = True, START
        elif self._is_altered and picture.entry:
            picture = picture._replace(entry=Entry.NONE)
        pos = -1 if p.pos is None else p.pos
        is_clean = not (is_discard or p.is_corrupt)
        self.packets.append(Packet(p.pts, p.dts, p.duration or 0, pos, is_key, picture, is_clean, not is_discard))


def _says_encrypted(stream: Any) -> bool:
    return stream.codec_context.codec_tag in _ENCRYPTED_TAGS or "enc_key_id" in stream.metadata


def _declared_s(container: Any, stream: Any) -> float | None:
    """The end in seconds that the container declares; None for containers that store no duration."""
    kind = container.format.name
    if kind == MP4:  # a fragmented MP4 has no sample count, and its duration is only that of the packets found
        return float(stream.duration * stream.time_base) if stream.frames and stream.duration else None
    return container.duration / 1e6 if kind in _WITH_DURATION and container.duration else None


def choose_stream(streams: list[VideoStream]) -> VideoStream:
    """The stream that is the video: the default one, else the one with the largest picture, else the longest.

    A stream with very few packets beside another with many is a still or a preview, and is taken last.
    """
    most = max(len(stream.packets) for stream in streams)

    def rank(stream: VideoStream) -> tuple[bool, bool, int, int, int]:
        count = len(stream.packets)
        is_moving = count >= min(_STILL_PACKETS, _STILL_RATIO * most) and (count > 1 or most == 1)
        return is_moving, stream.is_default, stream.width * stream.height, count, -stream.number

    return max(streams, key=rank)


def relay(streams: list[VideoStream]) -> list[VideoStream]:
    """The chosen stream and those that lie wholly before or after it in the file, as after a change of programme."""
    reach = {
        s.number: (min(places), max(places)) for s in streams if (places := [p.pos for p in s.packets if p.pos >= 0])
    }
    chosen = [choose_stream(streams)]
    for stream in sorted(streams, key=lambda s: -len(s.packets)):
        if stream.number in reach and all(_is_apart(reach, stream.number, c.number) for c in chosen):
            chosen.append(stream)
    return sorted(chosen, key=lambda s: reach.get(s.number, (0, 0)))


def _is_apart(reach: dict[int, tuple[int, int]], number: int, other: int) -> bool:
    """Whether two streams lie one wholly before the other; `reach` has the first and last byte of each stream."""
    return (
        number != other
        and other in reach
        and (reach[number][1] < reach[other][0] or reach[other][1] < reach[number][0])
    )
