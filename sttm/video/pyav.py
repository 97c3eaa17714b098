"""Open and index a video with PyAV, from the bytes of its file in memory."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sttm.errors import VideoError
from sttm.video.container import is_cut_off, is_protected
from sttm.video.index import BROADCAST, VideoIndex, index_video
from sttm.video.streams import VideoStream, choose_stream, read_streams, relay
from sttm.video.transport_stream import changes_codec, is_scrambled, video_pids

# Playlists and concat scripts are left out, because they make FFmpeg open other files and addresses. So are formats
# that archives seldom hold or that have no times (RealMedia, WTV, NUT, GXF, raw MPEG): each parser can be attacked.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf,dv"
_MAX_PARTS = 100
_CODEC_WARNING = "the video goes on with another codec on the same PID, where its frames are lost; split the file there"
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
        with open_container(source) as container:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
            candidates = _candidates(container)
            has_decoder = not candidates or any(s.codec_context is not None for s in candidates)
            found = read_streams(container, [s for s in candidates if s.codec_context], demux(container))
            is_transport_stream = container.format.name == "mpegts"
        if found:
            index = index_video(*_followed(source, found))
            if index is not None and is_transport_stream and changes_codec(source.getbuffer(), found[0].id):
                index = replace(index, warnings=(*index.warnings, _CODEC_WARNING))
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


def starts_plain(source: io.BytesIO, index: VideoIndex) -> bool:
    """Whether the first frame can be decoded, is progressive and has no display matrix."""
    import av

    try:
        with open_container(source) as container:
            frame = next(container.decode(container.streams[index.parts[0].stream]), None)
            return frame is not None and not frame.interlaced_frame and display_matrix(frame) is None
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return False


def display_matrix(frame: Any) -> bytes | None:
    """The display matrix of a frame of PyAV, None if it has none.

    `frame.side_data` would put the frame into a cycle of references. The frame would then live, with its pictures and
    the threads of its scaler, until Python next looks for such cycles: for more than a hundred frames.
    """
    from av.sidedata.sidedata import SideDataContainer

    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    return None if matrix is None else bytes(matrix)


def open_container(source: io.BytesIO, offset: int = 0, hardware: Any = None) -> Any:
    """Open a file with PyAV, from one of its bytes on. Several containers may be open on one file.

    Args:
        source: the bytes of the file.
        offset: the byte at which the container begins.
        hardware: PyAV's `HWAccel`, to decode on a GPU; None decodes on the CPU.
    """
    import av

    av.logging.set_level(av.logging.PANIC)
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": ""}
    return av.open(
        _MemoryFile(source.getbuffer()[offset:]), options=options, hwaccel=hardware, metadata_errors="replace"
    )


class _MemoryFile(io.RawIOBase):
    """Bytes in memory as a file with a position of its own."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size < 0 else self._at + size
        found = bytes(self._data[self._at : end])
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, len(self._data))[whence]
        self._at = min(max(0, base + offset), len(self._data))
        return self._at

    def tell(self) -> int:
        return self._at


def demux(container: Any, *streams: Any) -> Iterator[Any]:
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
            with open_container(source, offset) as container:
                streams = [s for s in _candidates(container) if s.codec_context and s.id not in passed_over]
                found = read_streams(container, streams, demux(container), offset)
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
