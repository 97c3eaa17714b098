"""Turn the bytes of a video into sampled frames.

The bytes are read and hashed once, and decoded from memory. PyAV first lists the packets without decoding them, which
gives the true time of every frame and chooses the stream. Then it decodes the packets that the sampled frames need
(`selection.py`), in order. It turns pictures by the whole display matrix, notices damage in what it decodes, and
follows a video through changes of the clock and of the programme.

With `decoder: decord` decord decodes the videos that it is known to be right for: H.264, HEVC or VP9 in MP4 or
Matroska, progressive 8-bit 4:2:0 with limited range and even sizes, closed GOPs, one video stream, no edit list, no
display matrix, and only if its own time stamps agree. PyAV decodes all others, and those that decord rejects. Decord
does not report damage inside pictures. PyAV does, as far as the codec can notice it: H.264, MPEG-2, MPEG-4 and AV1
mostly, HEVC, VP8 and VP9 seldom, unless a packet cannot be decoded at all.

PyAV and decord convert to RGB with swscale's defaults and ignore the pixel aspect ratio. Their pixels are equal for the
videos that are left to decord, unless the picture size changes in the middle: PyAV then scales to the first size.

Codes of the `VideoError`s raised here:
    bad_row               the row of the manifest names no video
    missing               there is no such file
    unreadable            a folder or a pipe, no permission, or a protocol that is not installed
    empty_file            the file has zero bytes
    too_large             the file has more than `max_source_bytes`
    not_a_video           the file has no known video format; images, playlists and text have none
    no_video_stream       the file has audio only, or nothing but cover art
    encrypted             the container or the packets say that the pictures are encrypted
    unsupported_codec     this FFmpeg has no decoder for the video stream
    too_many_pixels       a frame, or all sampled frames together, exceed the caps
    unusable_frames       the model's processor refuses the shape of the frames
    truncated             the file ends before the time that its container declares
    no_frames             none of the sampled frames could be decoded
    damaged               less than half of the sampled frames could be decoded from sound data
"""

import io
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sttm.corpus.listing import VideoRef
from sttm.errors import VideoError
from sttm.settings import Settings
from sttm.urls import redact_url
from sttm.video.avi import count_frame_chunks
from sttm.video.container import count_recordings, declared_fragments_s, is_cut_off
from sttm.video.file import read_video_file
from sttm.video.frame_buffer import FrameBuffer, Pixels, Resizer
from sttm.video.frames import Frames, frames_at_rate, sample_times, sampling_clock
from sttm.video.index import VideoIndex
from sttm.video.keyframes import moved_to_entries
from sttm.video.pyav import read_index, starts_plain
from sttm.video.segments import decode
from sttm.video.streams import MP4

_DECORD_BATCH = 16  # frames decoded at once, which bounds the size of decord's own copy
_SAME_TIME_S = 1e-3  # Matroska rounds times to milliseconds
_SHORT_S, _SHORT_RATIO = 0.25, 0.005  # a file may end by this much before its declared duration


class VideoConfig(Settings):
    """How videos are sampled, and caps that keep a single video from exhausting a machine.

    Attributes:
        fps: frames sampled per second of video.
        max_frames: the most frames; a longer video is sampled evenly from its first to its last frame.
        min_frames: the fewest frames; a shorter video is sampled more densely, as far as it has frames.
        sampling: `exact` takes the frame that is on screen at each sampled time. `keyframes` takes the nearest frame at
            which decoding can start, if one is near enough, because only one packet must then be decoded for it. The
            frames keep their true times, and the manifest says how far they lie from the sampled ones.
        keyframe_tolerance_s: the most seconds from a sampled frame to the key frame taken in its place.
        decoder: `pyav` decodes with PyAV on CPU cores. `nvdec` decodes with the decoding engines of the GPUs that
            prefill, and on CPU cores the videos that those cannot decode. `auto` decodes on CPU cores; `sttm index`
            then also uses the GPUs while the cores do not keep up. `decord` decodes with decord the videos that decord
            is known to be right for, and with PyAV the others. NVDEC and decord notice no damage inside pictures.
        max_source_bytes: the most bytes of a video file.
        max_pixels: the most pixels (width x height) of a frame.
        max_decoded_bytes: the most bytes of all sampled frames together, in RGB and in the size in which they are kept:
            the model's when videos are indexed.
    """

    fps: float = Field(default=1.0, gt=0, le=1000)
    max_frames: int = Field(default=128, ge=1)
    min_frames: int = Field(default=1, ge=1)
    sampling: Literal["exact", "keyframes"] = "exact"
    keyframe_tolerance_s: float = Field(default=0.5, gt=0, le=3600)
    decoder: Literal["auto", "pyav", "decord", "nvdec"] = "auto"
    max_source_bytes: int = Field(default=2 << 30, ge=1)
    max_pixels: int = Field(default=8192 * 4320, ge=1)
    max_decoded_bytes: int = Field(default=4 << 30, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "VideoConfig":
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames={self.min_frames} is over max_frames={self.max_frames}; lower min_frames")
        return self

    def in_recipe(self) -> dict[str, Any]:
        """The settings as a recipe has them. Exact sampling is left out, as it was before there was another."""
        exact = {"sampling", "keyframe_tolerance_s"} if self.sampling == "exact" else set()
        return self.model_dump(mode="json", exclude=exact)


def decoder_versions() -> dict[str, str]:
    """Versions of PyAV and decord, without importing them. They and the video decide which decoder a video gets."""
    return {"decord": version("decord"), "pyav": version("av")}


def read_video(
    ref: VideoRef | str,
    config: VideoConfig,
    *,
    resizer: Resizer | None = None,
    on_gpu: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> Frames:
    """Read, check, sample and decode one video.

    For each sampled time the frame that is on screen is taken, and no frame is taken twice. So a video that shows a
    frame for long, or that has fewer frames per second than `fps`, gives fewer frames.

    Args:
        ref: the video, or its path or URL.
        config: how to sample, and the caps.
        resizer: decides to which size each frame is resized as it is decoded, by a model; None keeps the full size.
        on_gpu: decode on the current GPU (`sttm.video.nvdec`), where the frames then stay.
        storage_options: options of the fsspec filesystem.

    Raises:
        VideoError: the video cannot be used; the codes are listed at the top of this file.
        OSError: the network, the storage or the machine failed; another attempt may succeed.
        MemoryError: a decoder could not get memory; the video may be fine.
        sttm.video.nvdec.NotOnGpuError: with `on_gpu`, only a CPU can decode the video.
    """
    ref = VideoRef.from_uri(ref) if isinstance(ref, str) else ref
    if ref.fault:
        raise VideoError("bad_row", ref.fault)
    where = redact_url(ref.uri)
    source, digest = read_video_file(ref.uri, config.max_source_bytes, storage_options)
    size_bytes = source.getbuffer().nbytes
    index = _held(read_index(source, where), source)
    warnings = _check(index, source, where, config) + index.warnings
    if ref.size_bytes not in (None, size_bytes):
        warnings = (*warnings, f"the file had {ref.size_bytes} bytes when listed and {size_bytes} when read")
    picked, more = _pick(index, config)
    warnings += more
    rate = frames_at_rate(index.seconds, config.fps, config.max_frames, len(picked), _SAME_TIME_S)
    shift = None
    if config.sampling == "keyframes":
        picked, shift = moved_to_entries(index, picked, config.keyframe_tolerance_s)
    wanted, limits = _Wanted(source, index, picked, where), (config, resizer)
    pixels, seconds, decoder, more = _on_gpu(wanted, *limits) if on_gpu else _on_cpu(wanted, *limits)
    return Frames(pixels, seconds, index.duration_s, digest, size_bytes, decoder, warnings + more, *rate, shift)


@dataclass(frozen=True)
class _Wanted:
    """The frames to decode: the bytes of the file, its index, positions of frames in it, and the name for messages."""

    source: io.BytesIO
    index: VideoIndex
    picked: NDArray[np.int64]
    where: str


_Decoded = tuple[Pixels, NDArray[np.float64], str, tuple[str, ...]]  # pixels, seconds, decoder, warnings


def _on_cpu(wanted: _Wanted, config: VideoConfig, resizer: Resizer | None) -> _Decoded:
    source, index, picked, where = wanted.source, wanted.index, wanted.picked, wanted.where
    buffer = FrameBuffer(len(picked), config.max_decoded_bytes, where, resizer)
    if index.is_for_decord and config.decoder == "decord" and _by_decord(source, index, picked, buffer):
        return buffer.pixels, index.seconds[picked], f"decord {version('decord')}", ()
    pixels, seconds, warnings = decode(source, index, index.pts[picked], config.max_pixels, where, buffer)
    if not buffer.is_sized_for(len(pixels)):  # frames are lost, and the model takes fewer frames in another size
        buffer = FrameBuffer(len(pixels), config.max_decoded_bytes, where, resizer)
        pixels, seconds, warnings = decode(source, index, index.pts[picked], config.max_pixels, where, buffer)
    return pixels, seconds, f"pyav {version('av')}", warnings


def _on_gpu(wanted: _Wanted, config: VideoConfig, resizer: Resizer | None) -> _Decoded:
    from sttm.video.gpu_frame_buffer import GpuFrameBuffer
    from sttm.video.nvdec import decode_on_gpu

    source, index, picked, where = wanted.source, wanted.index, wanted.picked, wanted.where
    buffer = GpuFrameBuffer(len(picked), config.max_decoded_bytes, where, resizer)
    pixels, seconds, warnings = decode_on_gpu(source, index, index.pts[picked], config.max_pixels, where, buffer)
    return pixels, seconds, f"pyav {version('av')} on NVDEC", warnings


def _held(index: VideoIndex, source: io.BytesIO) -> VideoIndex:
    """The index of an AVI file whose last chunks are empty, which means that its last frame stays on the screen."""
    if index.container != "avi" or not index.missing_s:
        return index
    end_s = count_frame_chunks(source.getbuffer(), index.parts[0].stream) * index.time_base
    held_s = end_s - (float(index.pts[-1]) * index.time_base + index.last_frame_s)
    if held_s <= 0:
        return index
    return replace(index, last_frame_s=index.last_frame_s + held_s, missing_s=max(0.0, index.missing_s - held_s))


def _check(index: VideoIndex, source: io.BytesIO, where: str, config: VideoConfig) -> tuple[str, ...]:
    """Raise a VideoError for a cut-off file or oversized frames before anything is decoded. Returns warnings."""
    if index.is_encrypted:
        raise VideoError("encrypted", f"{where} is encrypted; decrypt it first")
    pixels = index.width * index.height
    if pixels > config.max_pixels:
        size = f"frames of {index.width}×{index.height}"
        raise VideoError("too_many_pixels", f"{where} has {size}, over max_pixels={config.max_pixels}; scale it down")
    reached_s = index.duration_s
    if index.container == MP4 and index.missing_s is None and (declared_s := declared_fragments_s(source.getbuffer())):
        index = replace(index, missing_s=max(0.0, declared_s - reached_s))
    if index.missing_s is not None and index.missing_s > _SHORT_S + _SHORT_RATIO * reached_s:
        what = f"{reached_s:.1f} s of {reached_s + index.missing_s:.1f} s are in the file"
        raise VideoError("truncated", f"{where}: {what}; copy it again")
    if is_cut_off(source.getbuffer()):
        if index.missing_s is None:
            raise VideoError("truncated", f"{where} is cut off after {reached_s:.1f} s; copy it again")
        return (f"the file is cut off; its video lacks {index.missing_s:.2f} s",)
    if (recordings := count_recordings(source.getbuffer())) > 1:
        return (f"the file is {recordings} files in one; only what belongs to the first is read for certain",)
    return ()


def _pick(index: VideoIndex, config: VideoConfig) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Positions in `index.pts` of the frames that are on screen at the sampled times, without repetition; warnings."""
    clock = sampling_clock(index.seconds, config.fps, config.max_frames)
    times = sample_times(0.0, float(clock[-1]), config.fps, config.max_frames, config.min_frames)
    picked = np.unique(np.searchsorted(clock, times + _SAME_TIME_S, side="right") - 1)
    if (gap_s := float(index.seconds[-1] - clock[-1])) > 0:
        return picked, (f"{gap_s:.0f} s of the video are gaps without frames; samples are taken where frames are",)
    return picked, ()


def _by_decord(source: io.BytesIO, index: VideoIndex, picked: NDArray[np.int64], buffer: FrameBuffer) -> bool:
    """Keep the picked frames; False if decord fails, or if its times or picture size differ from the container's."""
    import decord

    if not starts_plain(source, index):  # decord garbles or ignores turned pictures, and converts fields otherwise
        return False
    decord.logging.set_level(decord.logging.QUIET)
    source.seek(0)
    try:
        reader = decord.VideoReader(source, num_threads=1)
        seconds = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        if len(seconds) != len(index.pts) or np.abs(seconds - seconds[0] - index.seconds).max() > 2 * _SAME_TIME_S:
            return False
        if reader[0].shape != (index.height, index.width, 3):
            return False
        for at in range(0, len(picked), _DECORD_BATCH):
            for frame in reader.get_batch(picked[at : at + _DECORD_BATCH]).asnumpy():
                buffer.append(frame)
        return True
    except (decord.DECORDError, AssertionError, RuntimeError, ValueError):
        return False
