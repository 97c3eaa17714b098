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
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sttm.corpus import VideoRef, redact_url
from sttm.errors import VideoError
from sttm.settings import Settings
from sttm.video_file import is_cut_off, read_video_file
from sttm.video_index import VideoIndex, index_stream

_DECORD_BATCH = 16  # decord's own copy of the frames stays this small
_SAME_TIME_S = 1e-3  # Matroska rounds to milliseconds
# No playlists or concat scripts: those make FFmpeg open other files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf"
_SHORT_S, _SHORT_RATIO = 0.25, 0.005  # a file may end this much before its declared duration
_MIN_DECODED_RATIO = 0.5


class VideoConfig(Settings):
    """How videos are sampled, and the caps that keep one video from taking a machine down."""

    fps: float = Field(default=1.0, gt=0, le=1000)  # frames sampled per second of video
    max_frames: int = Field(default=128, ge=1)  # a longer video is sampled uniformly, first and last frame included
    min_frames: int = Field(default=1, ge=1)  # a shorter video is sampled denser, as far as it has frames
    decoder: Literal["auto", "pyav"] = "auto"  # auto: decord where it is right
    max_source_bytes: int = Field(default=2 << 30, ge=1)
    max_pixels: int = Field(default=8192 * 4320, ge=1)  # width × height of a frame
    max_decoded_bytes: int = Field(default=4 << 30, ge=1)  # all sampled frames together, in RGB


@dataclass(frozen=True)
class Frames:
    """The sampled frames of one video.

    Attributes:
        pixels: uint8 [T, H, W, 3], RGB, upright.
        seconds: float64 [T], presentation time of each frame after the video's first frame, strictly increasing.
        duration_s: from the first frame's start to the last frame's end, in the whole video.
        content_digest: blake3 of the file's bytes, hex.
        size_bytes: length of the file.
        decoder: what decoded it, e.g. `decord 0.6.0`.
        warnings: sentences for a person; the frames are usable all the same.
    """

    pixels: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    duration_s: float
    content_digest: str
    size_bytes: int
    decoder: str
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        p, s = self.pixels, self.seconds
        if p.dtype != np.uint8 or p.ndim != 4 or p.shape[-1] != 3 or not p.size:
            raise ValueError(f"pixels are {p.dtype} {p.shape}, not uint8 [T,H,W,3]")
        if s.dtype != np.float64 or s.shape != p.shape[:1] or (np.diff(s) <= 0).any():
            raise ValueError(f"seconds are {s.dtype} {s.shape}, not {len(p)} increasing float64")

    def __repr__(self) -> str:
        span = f"{self.seconds[0]:.3f}..{self.seconds[-1]:.3f} of {self.duration_s:.3f} s"
        return f"Frames({list(self.pixels.shape)}, {span}, {self.decoder!r}, warnings={len(self.warnings)})"


def decoder_versions() -> dict[str, str]:
    """Versions of both decoders, without loading them: which one a video gets follows from them and the video."""
    return {"decord": version("decord"), "pyav": version("av")}


def sample_times(start: float, end: float, fps: float, max_frames: int, min_frames: int = 1) -> NDArray[np.float64]:
    """Times to sample, in seconds: every 1/fps from `start` on; spread evenly from `start` to `end` where capped.

    `end` is the time of the last frame (not its end), so that both ends of a capped video are really sampled:

        sample_times(0, 3.5, fps=1, max_frames=8)  -> 0 1 2 3
        sample_times(0, 9.9, fps=1, max_frames=4)  -> 0 3.3 6.6 9.9
    """
    count = math.floor((end - start) * fps + 1e-6) + 1
    if min_frames <= count <= max_frames:
        return start + np.arange(count) / fps
    return np.linspace(start, end, min(max(count, min_frames), max_frames))


def read_video(ref: VideoRef | str, config: VideoConfig, *, storage_options: dict[str, Any] | None = None) -> Frames:
    """Read, check, sample and decode one video.

    At each sampled time the frame on screen is taken, once: a frame shown for long, or a video slower than `fps`,
    gives fewer frames. A problem of the network or the machine stays an ordinary `OSError`, worth another try.

    Raises:
        VideoError: anything that is the video's fault; codes above.
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
            return index_stream(container, _video_stream(container, where), _demux(container), where)
    except av.error.FFmpegError as e:
        if is_cut_off(source.getbuffer()):
            cause = "the file is cut off before its index"
            raise VideoError("truncated", f"{where}: {cause}; copy it again or wait until it is written") from None
        cause = getattr(e, "strerror", None) or type(e).__name__
        raise VideoError("not_a_video", f"{where} is in no known video format ({cause}); check the file") from None


def _demux(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets up to the first place that cannot be parsed; a gap to the declared duration is noticed later."""
    import av

    try:
        yield from container.demux(*streams)
    except av.error.FFmpegError:
        return


def _video_stream(container: Any, where: str) -> Any:
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise VideoError("no_video_stream", f"{where} has no video stream (streams: {kinds}); leave it out")
    if streams[0].codec_context is None:
        raise VideoError("unsupported_codec", f"{where}: no decoder for its codec; re-encode it, for example as H.264")
    return streams[0]


def _check(index: VideoIndex, source: io.BytesIO, where: str, config: VideoConfig) -> tuple[str, ...]:
    """Refuse cut-off files and oversized frames before anything is decoded. Returns warnings."""
    pixels = index.width * index.height
    if pixels > config.max_pixels:
        size = f"frames of {index.width}×{index.height}"
        raise VideoError("too_many_pixels", f"{where} has {size}, over max_pixels={config.max_pixels}; scale it down")
    reached_s = index.duration_s
    if index.missing_s > _SHORT_S + _SHORT_RATIO * reached_s:
        what = f"{reached_s:.1f} s of {reached_s + index.missing_s:.1f} s are in the file"
        raise VideoError("truncated", f"{where}: {what}; copy it again")
    if is_cut_off(source.getbuffer()):
        if not index.missing_s:
            raise VideoError("truncated", f"{where} is cut off after {reached_s:.1f} s; copy it again")
        return (f"the file is cut off, {index.missing_s:.2f} s before its end",)
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
    """The picked frames, or None where decord fails or its time stamps are not the container's."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    source.seek(0)
    try:
        reader = decord.VideoReader(source, num_threads=1)
        seconds = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        if len(seconds) != len(index.pts) or np.abs(seconds - seconds[0] - index.seconds).max() > 2 * _SAME_TIME_S:
            return None
        parts = np.array_split(picked, math.ceil(len(picked) / _DECORD_BATCH))
        first = reader.get_batch(parts[0]).asnumpy()
        pixels = np.empty((len(picked), *first.shape[1:]), np.uint8)
        pixels[: len(first)] = first
        at = len(first)
        for part in parts[1:]:
            pixels[at : at + len(part)] = reader.get_batch(part).asnumpy()
            at += len(part)
    except (decord.DECORDError, AssertionError, RuntimeError, ValueError):
        return None
    return pixels


def _by_pyav(
    source: io.BytesIO, index: VideoIndex, picked: NDArray[np.int64], where: str, config: VideoConfig
) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[str, ...]]:
    """The picked frames, their seconds, and warnings. A frame that is lost is replaced by the one before, once."""
    kept = _Kept(index, index.pts[picked], where, config)
    with _open(source) as container:
        stream = container.streams[index.stream]
        stream.codec_context.thread_count = 1
        for frame in _decoded(container, stream, index, kept):
            kept.offer(frame)
    return kept.finish()


def _decoded(container: Any, stream: Any, index: VideoIndex, kept: "_Kept") -> Iterator[Any]:
    """Frames in presentation order, of the groups of packets that hold a wanted one."""
    import av

    needed = np.zeros(index.packet_gop.max() + 1, bool)
    needed[index.packet_gop[np.isin(index.packet_pts, kept.wanted)]] = True
    context, before = stream.codec_context, 0
    for number, packet in enumerate(p for p in _demux(container, stream) if p.size):
        gop = index.packet_gop[number]
        if not needed[gop]:
            continue
        try:
            if gop > before + 1 or (gop and not number):
                yield from context.decode(None)
                context.flush_buffers()
            before = gop
            yield from context.decode(packet)
        except av.error.FFmpegError:
            kept.bad_packets += 1
    try:
        yield from context.decode(None)
    except av.error.FFmpegError:
        kept.bad_packets += 1


class _Kept:
    """Takes the wanted frames out of the decoded ones; holds one undecided frame beside those it keeps."""

    def __init__(self, index: VideoIndex, wanted: NDArray[np.int64], where: str, config: VideoConfig) -> None:
        self.index, self.wanted, self.where, self.config = index, wanted, where, config
        self.pixels: NDArray[np.uint8] | None = None
        self.pts: list[int] = []
        self.previous: Any = None
        self.bad_packets = self.bad_frames = 0
        self.next = 0  # position in `wanted`

    def offer(self, frame: Any) -> None:
        """Look at the next frame in presentation order."""
        if frame.pts is None or (self.previous is not None and frame.pts <= self.previous.pts):
            return
        if frame.width * frame.height > self.config.max_pixels:
            what = f"a frame of {frame.width}×{frame.height}, over max_pixels={self.config.max_pixels}"
            raise VideoError("too_many_pixels", f"{self.where} has {what}; scale it down")
        while self.next < len(self.wanted) and frame.pts > self.wanted[self.next]:
            self._take(self.previous)
        self.previous = frame
        if self.next < len(self.wanted) and frame.pts == self.wanted[self.next]:
            self._take(frame)

    def _take(self, frame: Any) -> None:
        self.next += 1
        if frame is None or (self.pts and frame.pts <= self.pts[-1]):
            return
        upright = _rgb(frame, self.pixels.shape[1:3] if self.pixels is not None else None)
        if self.pixels is None:
            self.pixels = np.empty((len(self.wanted), *upright.shape), np.uint8)
        self.pixels[len(self.pts)] = upright
        self.pts.append(frame.pts)
        self.bad_frames += frame.is_corrupt

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[str, ...]]:
        """The kept frames; `no_frames`, `truncated` or `damaged` where too few came."""
        while self.next < len(self.wanted):
            self._take(self.previous)
        count, total = len(self.pts), len(self.wanted)
        if self.pixels is None:
            raise VideoError(
                "no_frames", f"{self.where}: none of its {total} sampled frames can be decoded; copy it again"
            )
        seconds = (np.array(self.pts) - self.index.pts[0]) * self.index.time_base
        if count < _MIN_DECODED_RATIO * total:
            span = (
                f"decoded {count} of {total} sampled frames, up to {seconds[-1]:.1f} s of {self.index.duration_s:.1f} s"
            )
            raise VideoError("damaged", f"{self.where}: {span}; copy it again")
        counts = ((self.bad_packets, "packets cannot be decoded"), (self.bad_frames, "sampled frames are damaged"))
        warnings = [f"{n} {what}" for n, what in counts if n]
        if count < total:
            warnings.append(f"{total - count} of {total} sampled frames are lost")
        return self.pixels[:count], seconds, tuple(warnings)


def _rgb(frame: Any, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], upright, scaled to `shape` (H, W) where the picture size changes inside the video."""
    turns = round(frame.rotation / 90) % 4
    height, width = shape or ((frame.height, frame.width) if turns % 2 == 0 else (frame.width, frame.height))
    if turns % 2:
        height, width = width, height
    rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(rgb, turns) if turns else rgb
