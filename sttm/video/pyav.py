"""Index and decode a video with PyAV, from the bytes of its file in memory."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sttm.errors import VideoError
from sttm.video.container import is_cut_off, is_protected
from sttm.video.frame_buffer import FrameBuffer
from sttm.video.frames import FrameKeeper
from sttm.video.index import BROADCAST, VideoIndex, index_video
from sttm.video.streams import VideoStream, choose_stream, read_streams, relay
from sttm.video.transport_stream import is_scrambled, video_pids

# Playlists and concat scripts are left out, because they make FFmpeg open other files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf"
_MAX_PARTS = 100
_PACKET_BYTES = 188
_SPARE_BYTES = 64 << 20


def read_index(source: io.BytesIO, where: str) -> VideoIndex:
    """List the packets of the video without decoding them.

    Raises:
        VideoError: the file has no video that can be decoded; the code is `not_a_video`, `no_video_stream`,
            `unsupported_codec`, `encrypted`, `no_frames` or `truncated`.
    """
    import av

    index, kinds, has_decoder = None, "none", True
    try:
        with _open(source) as container:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
            candidates = _candidates(container)
            has_decoder = not candidates or any(s.codec_context is not None for s in candidates)
            found = read_streams(container, [s for s in candidates if s.codec_context], _demux(container))
            is_transport_stream = container.format.name == "mpegts"
        if found:
            index = index_video(*_followed(source, found))
        if index is not None and not (is_transport_stream and is_scrambled(source.getbuffer(), found[0].id)):
            return index
        if is_transport_stream and is_scrambled(source.getbuffer()):
            code, cause = "encrypted", "is encrypted (its packets are scrambled); decrypt it first"
        elif not has_decoder:
            code, cause = "unsupported_codec", "has a codec without a decoder; re-encode it, for example as H.264"
        elif not candidates:
            code, cause = "no_video_stream", f"has no video stream (streams: {kinds}); leave it out"
        else:
            code, cause = "no_frames", "has a video stream without a single frame; copy it again"
    except MemoryError:  # PyAV's memory error is an FFmpegError too, but seldom the video's fault
        if _lacks_memory():
            raise
        code, cause = "not_a_video", "asks for more memory than there is, as a damaged header does; check the file"
    except av.error.FFmpegError as e:
        code, cause = "not_a_video", f"is in no known video format ({e.strerror or type(e).__name__}); check the file"
    if is_protected(source.getbuffer()):
        code, cause = "encrypted", "is encrypted; decrypt it first"
    elif is_cut_off(source.getbuffer()):
        code, cause = "truncated", "is cut off before its index; copy it again or wait until it is written"
    raise VideoError(code, f"{where} {cause}")


def decode(
    source: io.BytesIO, index: VideoIndex, wanted: NDArray[np.int64], max_pixels: int, where: str, buffer: FrameBuffer
) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[str, ...]]:
    """Decode the wanted frames. In place of a lost frame the frame before it is taken, but never twice.

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
            for frame in _decoded(source, index, part, keeper):
                keeper.offer(frame)
            keeper.begin_stream()
    except MemoryError:
        raise
    except av.error.BlockingIOError as e:  # there was no memory for the stacks of the scaler's threads
        raise MemoryError(f"{where}: no memory to turn its frames into RGB") from e
    except av.error.FFmpegError as e:
        cause = f"its frames cannot be turned into RGB ({e.strerror})"
        raise VideoError("unsupported_codec", f"{where}: {cause}; re-encode it, for example as H.264") from None
    return keeper.finish()


def starts_plain(source: io.BytesIO, index: VideoIndex) -> bool:
    """Whether the first frame can be decoded, is progressive and has no display matrix."""
    import av

    try:
        with _open(source) as container:
            frame = next(container.decode(container.streams[index.parts[0].stream]), None)
            return frame is not None and not frame.interlaced_frame and "DISPLAYMATRIX" not in frame.side_data
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return False


def _open(source: io.BytesIO, offset: int = 0) -> Any:
    import av

    av.logging.set_level(av.logging.PANIC)
    source.seek(0)
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": ""}
    data = io.BytesIO(source.getbuffer()[offset:]) if offset else source
    return av.open(data, options=options, metadata_errors="replace")


def _demux(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets up to the first one that cannot be parsed. The caller notices if much of the video is missing."""
    import av

    try:
        yield from container.demux(*streams)
    except MemoryError:
        if _lacks_memory():
            raise
    except av.error.FFmpegError:
        return
    except IndexError:  # PyAV's, after the last packet, if streams appeared that the header did not have
        return


def _lacks_memory() -> bool:
    """Whether memory is short. If not, FFmpeg asked for an absurd amount, because a number in the file is damaged."""
    try:
        return not bytearray(_SPARE_BYTES)
    except MemoryError:
        return True


def _candidates(container: Any) -> list[Any]:
    """The video streams that are not cover art."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [s for s in container.streams.video if not s.disposition & pictures]


def _followed(source: io.BytesIO, found: list[VideoStream]) -> tuple[list[VideoStream], int]:
    """The streams that hold the video one after the other, and the number of the other video streams.

    A transport stream may go on in streams that its beginning does not announce. FFmpeg does not give their packets, so
    the file is opened again behind the last packet.
    """
    import av

    if found[0].container not in BROADCAST:
        return [choose_stream(found)], len(found) - 1
    parts, others = relay(found), len(found)
    passed_over = {s.id for s in found} - {s.id for s in parts}
    while found[0].container == "mpegts" and len(parts) < _MAX_PARTS:
        offset = parts[-1].offset + max(p.pos for p in parts[-1].packets) + _PACKET_BYTES
        if not video_pids(source.getbuffer()[offset:]) - passed_over:
            break
        try:
            with _open(source, offset) as container:
                streams = [s for s in _candidates(container) if s.codec_context and s.id not in passed_over]
                found = read_streams(container, streams, _demux(container), offset)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            break
        if not found or found[0].container != "mpegts":
            break
        more = relay(found)
        parts, others = parts + more, others + len(found)
        passed_over |= {s.id for s in found} - {s.id for s in more}
    return parts, others - len(parts)


def _decoded(source: io.BytesIO, index: VideoIndex, part: int, keeper: FrameKeeper) -> Iterator[Any]:
    """Decode the GOPs of one part that hold a wanted frame, and yield all their frames in presentation order."""
    here = index.packet_part == part
    gops, shifts, stamps = index.packet_gop[here], index.packet_shift[here], index.packet_pts[here]
    needed = set(gops[np.isin(stamps, keeper.wanted)].tolist()) if not index.is_counted else set(gops.tolist())
    if not needed:
        return
    offset, number = index.parts[part]
    with _open(source, offset) as container:
        stream = container.streams[number]
        context = stream.codec_context
        context.thread_count = 1
        frames = _of_packets(context, _needed(container, stream, gops, shifts, needed), keeper)
        yield from _counted(frames, index, keeper) if index.is_counted else frames


def _needed(
    container: Any, stream: Any, gops: NDArray[np.int64], shifts: NDArray[np.int64], needed: set[int]
) -> Iterator[Any]:
    """The packets of the needed GOPs, with shifted times; None where the decoder must start anew."""
    is_shifted, before = bool(shifts.any()), -1
    packets = (p for p in _demux(container, stream) if p.size)
    for gop, shift, packet in zip(gops.tolist(), shifts.tolist(), packets, strict=False):
        if gop not in needed:
            continue
        if before >= 0 and (gop > before + 1 or (is_shifted and gop != before and packet.is_keyframe)):
            yield None
        before = gop
        if shift:
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        yield packet


def _of_packets(context: Any, packets: Iterator[Any], keeper: FrameKeeper) -> Iterator[Any]:
    """The frames that the packets hold, in presentation order."""
    import av

    for packet in packets:
        if packet is not None and packet.is_corrupt:
            keeper.tear_packet()
        try:
            yield from context.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            keeper.lose_packet()
        if packet is None:
            context.flush_buffers()
    try:
        yield from context.decode(None)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        keeper.lose_packet()


def _counted(frames: Iterator[Any], index: VideoIndex, keeper: FrameKeeper) -> Iterator[Any]:
    """The frames with the times of a file that has its times in decoding order: the n-th frame has the n-th time."""
    for number, frame in enumerate(frames):
        if (at := number + keeper.bad_packets) >= len(index.pts):
            return
        frame.pts = int(index.pts[at])
        yield frame
