"""Decode the packets that the wanted frames need, and more of them where the result is in doubt."""

import io
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sttm.errors import VideoError
from sttm.video.frame_buffer import FrameBuffer
from sttm.video.frames import FrameKeeper
from sttm.video.index import VideoIndex
from sttm.video.pyav import demux, open_container
from sttm.video.selection import Group, Positions, Segment, select


def decode(
    source: io.BytesIO, index: VideoIndex, wanted: NDArray[np.int64], max_pixels: int, where: str, buffer: FrameBuffer
) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[str, ...]]:
    """Decode the wanted frames.

    In place of a lost frame the frame decoded before it is taken, unless that one is taken already.

    Args:
        source: the bytes of the file.
        index: the index of the video.
        wanted: int64 [T], time stamps of the frames, increasing.
        max_pixels: the most pixels of a decoded frame.
        where: name of the video, for error messages.
        buffer: where the frames are kept, and perhaps resized.

    Returns:
        Pixels uint8 [T, H, W, 3], times float64 [T] in seconds, and warnings.

    Raises:
        VideoError: the code is `too_many_pixels`, `unusable_frames`, `unsupported_codec`, `no_frames` or `damaged`.
        MemoryError: the decoder could not get memory.
    """
    import av

    keeper = FrameKeeper(index, wanted, max_pixels, where, buffer)
    try:
        for part in range(len(index.parts)):
            _decode_part(source, index, part, keeper)
            keeper.begin_stream()
    except MemoryError:
        raise
    except av.error.BlockingIOError as e:  # there was no memory for the stacks of the scaler's threads
        raise MemoryError(f"{where}: no memory to turn its frames into RGB") from e
    except av.error.FFmpegError as e:
        cause = f"its frames cannot be turned into RGB ({e.strerror})"
        raise VideoError("unsupported_codec", f"{where}: {cause}; re-encode it, for example as H.264") from None
    return keeper.finish()


def _decode_part(source: io.BytesIO, index: VideoIndex, part: int, keeper: FrameKeeper) -> None:
    with (
        closing(PacketPass(source, index, part)) as selected,
        closing(PacketPass(source, index, part)) as plain,
    ):
        for group in select(index, part, keeper.wanted):
            _decode_group(group, selected, plain, keeper)


def _decode_group(group: Group, selected: "PacketPass", plain: "PacketPass", keeper: FrameKeeper) -> None:
    if group.segments:
        state = keeper.state()
        try:
            for segment in group.segments:
                for frame in checked(selected.frames(segment), segment):
                    keeper.offer(frame)
            return
        except DoubtError:
            keeper.restore(state)
    whole = group.whole
    for frame in plain.frames(whole, keeper):
        if frame.pts is None or whole.shown_from <= frame.pts <= whole.shown_to:
            keeper.offer(frame)


class DoubtError(Exception):
    """A segment may have given other frames than a decode of the whole stream would give."""


def checked(frames: Iterator[Any], segment: Segment) -> Iterator[Any]:
    """The frames of a segment up to the last wanted one.

    Raises:
        DoubtError: a frame is damaged or out of order, or a wanted one is missing.
    """
    due, before = segment.wanted.tolist()[::-1], None
    for frame in frames:
        if frame.pts is not None and frame.pts < segment.shown_from:
            continue
        if frame.pts is None or frame.is_corrupt or (before is not None and frame.pts <= before):
            raise DoubtError
        before = frame.pts
        if due and before > due[-1]:
            raise DoubtError
        if due:
            yield frame
            if before == due[-1]:
                due.pop()
    if due:
        raise DoubtError


class PacketPass:
    """A pass over the packets of one part, with a decoder of its own. For an earlier packet the file is opened again.

    Args:
        source: the bytes of the file.
        index: the index of the video.
        part: position in `index.parts`.
        hardware: PyAV's `HWAccel`, to decode on a GPU; None decodes on the CPU.
    """

    def __init__(self, source: io.BytesIO, index: VideoIndex, part: int, hardware: Any = None) -> None:
        self._hardware = hardware
        self._source, self._index, self._part = source, index, part
        self._shifts = index.packet_shift[index.packet_part == part].tolist()
        self._container: Any = None
        self._next = 0  # position of the next packet

    def close(self) -> None:
        """Release the decoder."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def frames(self, segment: Segment, keeper: FrameKeeper | None = None) -> Iterator[Any]:
        """Start the decoder anew and decode the packets of a segment. Yields frames in presentation order.

        Args:
            segment: the packets.
            keeper: takes note of damage.

        Raises:
            DoubtError: there is damage, and no keeper to take note of it.
        """
        if self._container is None or segment.packets[0] < self._next:
            self._open()
        else:
            self._context.flush_buffers()
        frames = self._decoded(segment, keeper)
        yield from self._counted(frames, keeper) if keeper and self._index.is_counted else frames

    def _open(self) -> None:
        self.close()
        offset, number = self._index.parts[self._part]
        self._container, self._next = open_container(self._source, offset, self._hardware), 0
        stream = self._container.streams[number]
        self._context = stream.codec_context
        self._context.thread_count = 1
        self._packets = (p for p in demux(self._container, stream) if p.size)

    def _decoded(self, segment: Segment, keeper: FrameKeeper | None) -> Iterator[Any]:
        import av

        for packet in chain(self._at(segment.packets), [None]):
            if packet is not None and packet.is_corrupt:
                if keeper is None:
                    raise DoubtError
                keeper.tear_packet()
            try:
                yield from self._context.decode(packet)
            except MemoryError:
                raise
            except av.error.FFmpegError as error:
                if keeper is not None:
                    keeper.lose_packet()
                elif packet is None or packet.pts is None or packet.pts >= segment.shown_from:
                    raise DoubtError from error

    def _at(self, positions: Positions) -> Iterator[Any]:
        """The packets at these positions, with shifted times."""
        for position in positions.tolist():
            while self._next <= position:
                packet = next(self._packets, None)
                self._next += 1
            if packet is None:
                return
            if shift := self._shifts[position]:
                packet.pts = None if packet.pts is None else packet.pts + shift
                packet.dts = None if packet.dts is None else packet.dts + shift
            yield packet

    def _counted(self, frames: Iterator[Any], keeper: FrameKeeper) -> Iterator[Any]:
        """The frames of a file that has its times in decoding order: the n-th frame has the n-th time."""
        for number, frame in enumerate(frames):
            if (at := number + keeper.bad_packets) >= len(self._index.pts):
                return
            frame.pts = int(self._index.pts[at])
            yield frame
