"""Turn the bytes of a video into sampled frames. Only this file imports decord and PyAV.

The bytes are read and hashed once, and decoded from memory. PyAV first lists the packets without decoding them, which
gives the true time of every frame. Then decord decodes the sampled frames if it is known to be right for the video:
H.264, HEVC or VP9 in MP4 or Matroska, with closed GOPs (groups of pictures) and no edit list, and only if its own time
stamps agree. All other videos, and those that decord rejects, are decoded by PyAV, which reads in order and skips GOPs
without a sampled frame. Both decoders give equal pixels: they use swscale's default conversion to RGB, apply the
rotation, and ignore the pixel aspect ratio.

Codes of the `VideoError`s raised here:
    bad_row               the row of the manifest names no video
    missing               there is no such file
    unreadable            a folder or a pipe, no permission, or a protocol that is not installed
    empty_file            the file has zero bytes
    too_large             the file has more than `max_source_bytes`
    not_a_video           the file has no known video format; images, playlists and text have none
    no_video_stream       the file has audio only, or nothing but cover art
    unsupported_codec     this FFmpeg has no decoder for the video stream
    too_many_pixels       a frame, or all sampled frames together, exceed the caps
    truncated             the file ends before the time that its container declares
    no_frames             none of the sampled frames could be decoded
    damaged               less than half of the sampled frames could be decoded
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
from sttm.video.frames import FrameKeeper, Frames, frames_at_rate, sample_times
from sttm.video.index import VideoIndex, index_stream

_DECORD_BATCH = 16  # frames decoded at once, which bounds the size of decord's own copy
_SAME_TIME_S = 1e-3  # Matroska rounds times to milliseconds
# Playlists and concat scripts are left out, because they make FFmpeg open other files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf"
_SHORT_S, _SHORT_RATIO = 0.25, 0.005  # a file may end by this much before its declared duration


class VideoConfig(Settings):
    """How videos are sampled, and caps that keep a single video from exhausting a machine.

    Attributes:
        fps: frames sampled per second of video.
        max_frames: the most frames; a longer video is sampled evenly from its first to its last frame.
        min_frames: the fewest frames; a shorter video is sampled more densely, as far as it has frames.
        decoder: `auto` uses decord for videos that it decodes correctly, and PyAV for the others; `pyav` always uses
            PyAV.
        max_source_bytes: the most bytes of a video file.
        max_pixels: the most pixels (width x height) of a frame.
        max_decoded_bytes: the most bytes of all sampled frames together, in RGB.
    """

    fps: float = Field(default=1.0, gt=0, le=1000)
    max_frames: int = Field(default=128, ge=1)
    min_frames: int = Field(default=1, ge=1)
    decoder: Literal["auto", "pyav"] = "auto"
    max_source_bytes: int = Field(default=2 << 30, ge=1)
    max_pixels: int = Field(default=8192 * 4320, ge=1)
    max_decoded_bytes: int = Field(default=4 << 30, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "VideoConfig":
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames={self.min_frames} is over max_frames={self.max_frames}; lower min_frames")
        return self


def decoder_versions() -> dict[str, str]:
    """Versions of both decoders, without importing them. They and the video decide which decoder a video gets."""
    return {"decord": version("decord"), "pyav": version("av")}


def read_video(ref: VideoRef | str, config: VideoConfig, *, storage_options: dict[str, Any] | None = None) -> Frames:
    """Read, check, sample and decode one video.

    For each sampled time the frame that is on screen is taken, and no frame is taken twice. So a video that shows a
    frame for long, or that has fewer frames per second than `fps`, gives fewer frames.

    Args:
        ref: the video, or its path or URL.
        config: how to sample, and the caps.
        storage_options: options of the fsspec filesystem.

    Raises:
        VideoError: the video cannot be used; the codes are listed at the top of this file.
        OSError: the network, the storage or the machine failed; another attempt may succeed.
        MemoryError: a decoder could not get memory; the video may be fine.
    """
    ref = VideoRef.from_uri(ref) if isinstance(ref, str) else ref
    if ref.fault:
        raise VideoError("bad_row", ref.fault)
    where = redact_url(ref.uri)
    source, digest = read_video_file(ref.uri, config.max_source_bytes, storage_options)
    size_bytes = source.getbuffer().nbytes
    index = _index(source, where)
    warnings = _check(index, source, where, config)
    if ref.size_bytes not in (None, size_bytes):
        warnings = (*warnings, f"the file had {ref.size_bytes} bytes when listed and {size_bytes} when read")
    picked = _pick(index, where, config)
    rate = frames_at_rate(index.seconds, config.fps, config.max_frames, len(picked), _SAME_TIME_S)
    if index.is_for_decord and config.decoder == "auto":
        pixels = _by_decord(source, index, picked)
        if pixels is not None:
            seconds, decoder = index.seconds[picked], f"decord {version('decord')}"
            return Frames(pixels, seconds, index.duration_s, digest, size_bytes, decoder, warnings, *rate)
    pixels, seconds, more = _by_pyav(source, index, picked, where, config)
    decoder = f"pyav {version('av')}"
    return Frames(pixels, seconds, index.duration_s, digest, size_bytes, decoder, warnings + more, *rate)


def _open(source: io.BytesIO) -> Any:
    import av

    av.logging.set_level(av.logging.PANIC)
    source.seek(0)
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": ""}
    return av.open(source, options=options, metadata_errors="replace")


def _index(source: io.BytesIO, where: str) -> VideoIndex:
    """List the packets of the video stream without decoding them; raise a VideoError if that is impossible."""
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
    except MemoryError:  # PyAV's memory error is an FFmpegError too, but it is not the video's fault
        raise
    except av.error.FFmpegError as e:
        code, cause = "not_a_video", f"is in no known video format ({e.strerror or type(e).__name__}); check the file"
    if is_cut_off(source.getbuffer()):
        code, cause = "truncated", "is cut off before its index; copy it again or wait until it is written"
    raise VideoError(code, f"{where} {cause}")


def _demux(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets up to the first one that cannot be parsed. `_check` notices later if much of the video is missing."""
    import av

    try:
        yield from container.demux(*streams)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return


def _video_stream(container: Any) -> Any | None:
    """The first video stream that is not cover art; None if there is none."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return next((s for s in container.streams.video if not s.disposition & pictures), None)


def _check(index: VideoIndex, source: io.BytesIO, where: str, config: VideoConfig) -> tuple[str, ...]:
    """Raise a VideoError for a cut-off file or oversized frames before anything is decoded. Returns warnings."""
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
    """Positions in `index.pts` of the frames that are on screen at the sampled times, without repetition."""
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
    """The picked frames; None if decord fails, or if its times or its picture size differ from the container's."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    source.seek(0)
    try:
        reader = decord.VideoReader(source, num_threads=1)
        seconds = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        if len(seconds) != len(index.pts) or np.abs(seconds - seconds[0] - index.seconds).max() > 2 * _SAME_TIME_S:
            return None
        if reader[0].shape != (index.height, index.width, 3):  # decord garbles pictures that are turned by 90°
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
    """Decode the picked frames with PyAV. In place of a lost frame the frame before it is taken, but never twice.

    Returns:
        Pixels uint8 [T, H, W, 3], times float64 [T] in seconds, and warnings.
    """
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
    except av.error.BlockingIOError as e:  # there was no memory for the stacks of the scaler's threads
        raise MemoryError(f"{where}: no memory to turn its frames into RGB") from e
    except av.error.FFmpegError as e:
        cause = f"its frames cannot be turned into RGB ({e.strerror})"
        raise VideoError("unsupported_codec", f"{where}: {cause}; re-encode it, for example as H.264") from None
    return keeper.finish()


def _decoded(container: Any, stream: Any, index: VideoIndex, keeper: FrameKeeper) -> Iterator[Any]:
    """Decode the GOPs that hold a wanted frame, and yield all their frames in presentation order."""
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
