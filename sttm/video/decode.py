"""From a video's bytes to sampled frames: the only door to decord and PyAV.

The bytes are read once (hashed on the way) and decoded from memory. PyAV first lists the packets without decoding,
which gives the true time of every frame. decord then decodes the sampled ones where it is known to be right: H.264,
HEVC and VP9 in MP4 or Matroska with closed GOPs and no edit list, and only if its own time stamps agree. Everything
else, and whatever decord refuses, goes to PyAV, which reads on in order and skips GOPs it does not need.
Both give equal pixels: swscale's default conversion to RGB, rotation applied, pixel aspect ratio ignored.

Codes of `VideoError` raised here:
    missing, unreadable   no such file; a folder, a pipe, no permission, a protocol that is not installed
    empty_file, too_large zero bytes; more than `max_source_bytes`
    not_a_video           no container format that is known (images, playlists and text are not)
    no_video_stream       audio only, or nothing but cover art
    unsupported_codec     this FFmpeg has no decoder for the video stream
    too_many_pixels       a frame, or all sampled frames together, over the caps
    truncated             the file ends before the time its container declares
    no_frames, damaged    nothing, or less than half of the sampled frames, could be decoded
"""

import io
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sttm.corpus import VideoRef
from sttm.errors import VideoError
from sttm.settings import Settings
from sttm.urls import redact_url
from sttm.video.container import is_cut_off
from sttm.video.file import read_video_file
from sttm.video.frames import FrameKeeper, Frames, sample_times
from sttm.video.index import VideoIndex, index_stream

_DECORD_BATCH = 16  # decord's own copy of the frames stays this small
_SAME_TIME_S = 1e-3  # Matroska rounds to milliseconds
# No playlists or concat scripts: those make FFmpeg open other files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf"
_SHORT_S, _SHORT_RATIO = 0.25, 0.005  # a file may end this much before its declared duration


class VideoConfig(Settings):
    """How videos are sampled, and the caps that keep one video from taking a machine down."""

    fps: float = Field(default=1.0, gt=0, le=1000)  # frames sampled per second of video
    max_frames: int = Field(default=128, ge=1)  # a longer video is sampled uniformly, first and last frame included
    min_frames: int = Field(default=1, ge=1)  # a shorter video is sampled denser, as far as it has frames
    decoder: Literal["auto", "pyav"] = "auto"  # auto: decord where it is right
    max_source_bytes: int = Field(default=2 << 30, ge=1)
    max_pixels: int = Field(default=8192 * 4320, ge=1)  # width × height of a frame
    max_decoded_bytes: int = Field(default=4 << 30, ge=1)  # all sampled frames together, in RGB

    @model_validator(mode="after")
    def _ordered(self) -> "VideoConfig":
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames={self.min_frames} is over max_frames={self.max_frames}; lower it")
        return self


def decoder_versions() -> dict[str, str]:
    """Versions of both decoders, without loading them: which one a video gets follows from them and the video."""
    return {"decord": version("decord"), "pyav": version("av")}


def read_video(ref: VideoRef | str, config: VideoConfig, *, storage_options: dict[str, Any] | None = None) -> Frames:
    """Read, check, sample and decode one video.

    At each sampled time the frame on screen is taken, once: a frame shown for long, or a video slower than `fps`,
    gives fewer frames. A problem of the network or the machine is an ordinary `OSError`, worth another try.

    Raises:
        VideoError: anything that is the video's fault; codes above.
        MemoryError: a decoder was refused memory, which says nothing of the video.
    """
    ref = VideoRef.from_uri(ref) if isinstance(ref, str) else ref
    where = redact_url(ref.uri)
    source, digest = read_video_file(ref.uri, config.max_source_bytes, storage_options)
    size_bytes = source.getbuffer().nbytes
    index = _index(source, where)
    warnings = _check(index, source, where, config)
    if ref.size_bytes not in (None, size_bytes):
        warnings = (*warnings, f"the file had {ref.size_bytes} bytes when listed and {size_bytes} when read")
    picked = _pick(index, where, config)
    if index.is_for_decord and config.decoder == "auto":
        pixels = _by_decord(source, index, picked)
        if pixels is not None:
            seconds, decoder = index.seconds[picked], f"decord {version('decord')}"
            return Frames(pixels, seconds, index.duration_s, digest, size_bytes, decoder, warnings)
    pixels, seconds, more = _by_pyav(source, index, picked, where, config)
    decoder = f"pyav {version('av')}"
    return Frames(pixels, seconds, index.duration_s, digest, size_bytes, decoder, warnings + more)


def _open(source: io.BytesIO) -> Any:
    import av

    av.logging.set_level(av.logging.PANIC)
    source.seek(0)
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": ""}
    return av.open(source, options=options, metadata_errors="replace")


def _index(source: io.BytesIO, where: str) -> VideoIndex:
    """List the packets of the video stream, without decoding them."""
    import av

    try:
        with _open(source) as container:
            stream = _video_stream(container)
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
            if stream is None:
                code, cause = "no_video_stream", f"has no video stream (streams: {kinds}); leave it out"
            elif stream.codec_context is None:
                code, cause = "unsupported_codec", "has a codec without a decoder; re-encode it, for example as H.264"
            elif index := index_stream(container, stream, _demux(container)):
                return index
            else:
                code, cause = "no_frames", "has a video stream without a single frame; copy it again"
    except MemoryError:  # one of FFmpeg's errors too, but the machine's fault
        raise
    except av.error.FFmpegError as e:
        code, cause = "not_a_video", f"is in no known video format ({e.strerror or type(e).__name__}); check the file"
    if is_cut_off(source.getbuffer()):
        code, cause = "truncated", "is cut off before its index; copy it again or wait until it is written"
    raise VideoError(code, f"{where} {cause}")


def _demux(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets up to the first place that cannot be parsed; a gap to the declared duration is noticed later."""
    import av

    try:
        yield from container.demux(*streams)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return


def _video_stream(container: Any) -> Any | None:
    """The first stream of moving pictures; cover art does not count."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return next((s for s in container.streams.video if not s.disposition & pictures), None)


def _check(index: VideoIndex, source: io.BytesIO, where: str, config: VideoConfig) -> tuple[str, ...]:
    """Refuse cut-off files and oversized frames before anything is decoded. Returns warnings."""
    pixels = index.width * index.height
    if pixels > config.max_pixels:
        size = f"frames of {index.width}×{index.height}"
        raise VideoError("too_many_pixels", f"{where} has {size}, over max_pixels={config.max_pixels}; scale it down")
    reached_s = index.duration_s
    if index.missing_s is not None and index.missing_s > _SHORT_S + _SHORT_RATIO * reached_s:
        what = f"{reached_s:.1f} s of {reached_s + index.missing_s:.1f} s are in the file"
        raise VideoError("truncated", f"{where}: {what}; copy it again")
    if is_cut_off(source.getbuffer()):
        if index.missing_s is None:
            raise VideoError("truncated", f"{where} is cut off after {reached_s:.1f} s; copy it again")
        return (f"the file is cut off; its video lacks {index.missing_s:.2f} s",)
    return ()


def _pick(index: VideoIndex, where: str, config: VideoConfig) -> NDArray[np.int64]:
    """Positions in `index.pts` of the frames on screen at the sampled times, each once."""
    seconds = index.seconds
    times = sample_times(0.0, float(seconds[-1]), config.fps, config.max_frames, config.min_frames)
    picked = np.unique(np.searchsorted(seconds, times + _SAME_TIME_S, side="right") - 1)
    if (size_bytes := len(picked) * index.width * index.height * 3) > config.max_decoded_bytes:
        what = f"{len(picked)} frames of {index.width}×{index.height} take {size_bytes} bytes"
        raise VideoError(
            "too_many_pixels", f"{where}: {what}, over max_decoded_bytes; lower max_frames or scale it down"
        )
    return picked


def _by_decord(source: io.BytesIO, index: VideoIndex, picked: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """The picked frames; None where decord fails, or where its times or picture size are not the container's."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    source.seek(0)
    try:
        reader = decord.VideoReader(source, num_threads=1)
        seconds = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        if len(seconds) != len(index.pts) or np.abs(seconds - seconds[0] - index.seconds).max() > 2 * _SAME_TIME_S:
            return None
        if reader[0].shape != (index.height, index.width, 3):  # pictures turned by 90° come with a broken layout
            return None
        pixels = np.empty((len(picked), index.height, index.width, 3), np.uint8)
        for at in range(0, len(picked), _DECORD_BATCH):
            pixels[at : at + _DECORD_BATCH] = reader.get_batch(picked[at : at + _DECORD_BATCH]).asnumpy()
        return pixels
    except (decord.DECORDError, AssertionError, RuntimeError, ValueError):
        return None


def _by_pyav(
    source: io.BytesIO, index: VideoIndex, picked: NDArray[np.int64], where: str, config: VideoConfig
) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[str, ...]]:
    """The picked frames, their seconds, and warnings. A frame that is lost is replaced by the one before, once."""
    import av

    keeper = FrameKeeper(index, index.pts[picked], config.max_pixels, where)
    try:
        with _open(source) as container:
            stream = container.streams[index.stream]
            stream.codec_context.thread_count = 1
            for frame in _decoded(container, stream, index, keeper):
                keeper.offer(frame)
    except MemoryError:
        raise
    except av.error.BlockingIOError as e:  # the scaler's threads were refused the memory of their stacks
        raise MemoryError(f"{where}: no memory to turn its frames into RGB") from e
    except av.error.FFmpegError as e:
        cause = f"its frames cannot be turned into RGB ({e.strerror})"
        raise VideoError("unsupported_codec", f"{where}: {cause}; re-encode it, for example as H.264") from None
    return keeper.finish()


def _decoded(container: Any, stream: Any, index: VideoIndex, keeper: FrameKeeper) -> Iterator[Any]:
    """Frames in presentation order, of the groups of packets that hold a wanted one."""
    import av

    needed = np.zeros(index.packet_gop.max() + 1, bool)
    needed[index.packet_gop[np.isin(index.packet_pts, keeper.wanted)]] = True
    context, before = stream.codec_context, 0
    packets = (p for p in _demux(container, stream) if p.size)
    for gop, packet in zip(index.packet_gop, packets, strict=False):
        if not needed[gop]:
            continue
        try:
            if gop > before + 1:
                yield from context.decode(None)
                context.flush_buffers()
            before = gop
            yield from context.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            keeper.bad_packets += 1
    try:
        yield from context.decode(None)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        keeper.bad_packets += 1
