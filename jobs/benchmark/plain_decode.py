"""Decode a video plainly, as a reference for cost and for pixels: every group of pictures with a sampled frame, whole.

Only the choice of times is taken from `sttm.video`. Nothing is checked: no damage, limits, jumps of the clock or
changes of the stream are looked for. The reference is right for sound files as encoders write them by default.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sttm.video.decode import VideoConfig
from sttm.video.frames import sample_times, sampling_clock

_SAME_TIME_S = 1e-3  # Matroska rounds times to milliseconds
_WITH_GROUPS = ("mov", "matroska")  # containers whose keyframe flags say where decoding can start


def read_plain(path: Path, config: VideoConfig) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Read, hash, sample and decode one video.

    Args:
        path: a video with one video stream.
        config: how to sample.

    Returns:
        Pixels uint8 [T, H, W, 3] and times float64 [T] in seconds after the first frame.
    """
    import av
    from blake3 import blake3

    source = io.BytesIO(path.read_bytes())
    blake3(source.getbuffer()).hexdigest()
    with av.open(source) as container:
        has_groups = container.format.name.startswith(_WITH_GROUPS)
        packets = [(p.pts, p.is_keyframe, p.is_discard) for p in container.demux(video=0) if p.size]
        tick_s = float(container.streams.video[0].time_base)
    stamps, keys, hidden = (np.array(column) for column in zip(*packets, strict=True))
    pts = np.unique(stamps[~hidden])
    seconds = (pts - pts[0]) * tick_s
    clock = sampling_clock(seconds, config.fps, config.max_frames)
    times = sample_times(0.0, float(clock[-1]), config.fps, config.max_frames, config.min_frames)
    picked = np.unique(np.searchsorted(clock, times + _SAME_TIME_S, side="right") - 1)
    groups = _groups(stamps, keys) if has_groups else np.zeros(len(stamps), np.int64)
    wanted = set(pts[picked].tolist())
    needed = set(groups[np.isin(stamps, pts[picked])].tolist())
    source.seek(0)
    with av.open(source) as container:
        frames = (frame for frame in _decoded(container, groups.tolist(), needed) if frame.pts in wanted)
        return _stacked(frames, len(picked)), seconds[picked]


def _groups(stamps: NDArray[np.int64], keys: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 [P], the group of each packet; one group if a frame is shown before the keyframe that it comes after."""
    groups = np.maximum(np.cumsum(keys) - 1, 0)
    return groups if (stamps >= stamps[keys][groups]).all() else np.zeros_like(groups)


def _decoded(container: Any, groups: list[int], needed: set[int]) -> Iterator[Any]:
    """All frames of the needed groups, in presentation order."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    before = -1
    packets = (packet for packet in container.demux(stream) if packet.size)
    for group, packet in zip(groups, packets, strict=True):
        if group not in needed:
            continue
        if before >= 0 and group > before + 1:
            yield from stream.codec_context.decode(None)
            stream.codec_context.flush_buffers()
        before = group
        yield from stream.codec_context.decode(packet)
    yield from stream.codec_context.decode(None)


def _stacked(frames: Iterator[Any], count: int) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3]: the frames as RGB, turned upright."""
    pixels = np.empty(0, np.uint8)
    for number, frame in enumerate(frames):
        upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        pixels = pixels if number else np.empty((count, *upright.shape), np.uint8)
        pixels[number] = upright
    return pixels
