"""Frames of one video: when to sample, how to collect them from a decoder, and what comes out.

Knows no decoder: `FrameKeeper` is offered objects shaped like PyAV's frames.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sttm.errors import VideoError
from sttm.video.index import VideoIndex

_MIN_DECODED_RATIO = 0.5


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


class FrameKeeper:
    """Takes the wanted frames out of the decoded ones, in presentation order; holds one more beside those it keeps.

    Args:
        wanted: int64 [T], time stamps of the frames to keep, increasing.
        max_pixels: cap on the area of every decoded frame.
        where: the video, for messages.
    """

    def __init__(self, index: VideoIndex, wanted: NDArray[np.int64], max_pixels: int, where: str) -> None:
        self.index, self.wanted, self.max_pixels, self.where = index, wanted, max_pixels, where
        self.pixels: NDArray[np.uint8] | None = None
        self.pts: list[int] = []
        self.size = (0, 0)
        self.previous: Any = None
        self.bad_packets = self.bad_frames = self.scaled = 0
        self.next = 0  # position in `wanted`

    def offer(self, frame: Any) -> None:
        """Look at the next frame in presentation order."""
        if frame.pts is None or (self.previous is not None and frame.pts <= self.previous.pts):
            return
        self.bad_frames += frame.is_corrupt
        if frame.width * frame.height > self.max_pixels:
            what = f"a frame of {frame.width}×{frame.height}, over max_pixels={self.max_pixels}"
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
        if self.pixels is None:
            self.size = frame.width, frame.height
            self.pixels = np.empty((len(self.wanted), *_upright(frame, self.size).shape), np.uint8)
        self.scaled += self.size != (frame.width, frame.height)
        self.pixels[len(self.pts)] = _upright(frame, self.size)
        self.pts.append(frame.pts)

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
        counts = {
            "packets cannot be decoded": self.bad_packets,
            "decoded frames are damaged": self.bad_frames,
            "sampled frames are lost": total - count,
            "sampled frames are scaled to the size of the first": self.scaled,
        }
        return self.pixels[:count], seconds, tuple(f"{n} {what}" for what, n in counts.items() if n)


def _upright(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of a frame scaled to `size` (stored width, height) and turned as its metadata says."""
    rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return np.rot90(rgb, round(frame.rotation / 90) % 4)
