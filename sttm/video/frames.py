"""The sampled frames of one video: at which times to sample, and how to collect the frames from a decoder.

This file imports no decoder. `FrameKeeper` takes objects with the attributes of PyAV's frames.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sttm.errors import VideoError
from sttm.video.frame_buffer import FrameBuffer, Pixels
from sttm.video.index import VideoIndex
from sttm.video.keyframes import TimeShift
from sttm.video.orientation import Orientation, read_display_matrix
from sttm.video.pyav import display_matrix

_MIN_SOUND_RATIO = 0.5
_GAP_S, _GAP_RATIO = 10.0, 20  # a gap is longer than this, and than this many times the usual distance of frames


@dataclass(frozen=True)
class Frames:
    """The sampled frames of one video.

    Attributes:
        pixels: uint8 [T, H, W, 3], RGB, upright, and resized if `read_video` was told how: an array, or a torch tensor
            on a GPU.
        seconds: float64 [T], presentation time of each frame after the video's first frame, strictly increasing.
        duration_s: seconds from the start of the first frame to the end of the last frame of the whole video.
        content_digest: blake3 digest of the file's bytes, in hex.
        size_bytes: size of the file.
        decoder: name and version of the decoder, such as `decord 0.6.0`.
        warnings: sentences for a person about flaws of the video. The frames can be used all the same.
        asked: how many different frames the video shows at the times that `fps` asks for.
        left_out: how many of these `max_frames` left out. Frames that are lost through damage are not counted here.
        shift: how far the key frames lie from the sampled frames in whose place they were taken; None if every frame is
            the sampled one by intention.
    """

    pixels: Pixels
    seconds: NDArray[np.float64]
    duration_s: float
    content_digest: str
    size_bytes: int
    decoder: str
    warnings: tuple[str, ...] = ()
    asked: int = 0
    left_out: int = 0
    shift: TimeShift | None = None

    def __post_init__(self) -> None:
        p, s = self.pixels, self.seconds
        if str(p.dtype).removeprefix("torch.") != "uint8" or p.ndim != 4 or p.shape[-1] != 3 or not len(p):
            raise ValueError(f"pixels are {p.dtype} {p.shape}, not uint8 [T,H,W,3]")
        if s.dtype != np.float64 or s.shape != p.shape[:1] or (np.diff(s) <= 0).any():
            raise ValueError(f"seconds are {s.dtype} {s.shape}, not {len(p)} increasing float64")

    def __repr__(self) -> str:
        span = f"{self.seconds[0]:.3f}..{self.seconds[-1]:.3f} of {self.duration_s:.3f} s"
        return f"Frames({list(self.pixels.shape)}, {span}, {self.decoder!r}, warnings={len(self.warnings)})"


def count_at_rate(span_s: float, fps: float) -> int:
    """How many samples 1/fps apart fit into the seconds from the start of the first to the start of the last frame."""
    return math.floor(span_s * fps + 1e-6) + 1


def frames_at_rate(
    seconds: NDArray[np.float64], fps: float, max_frames: int, picked: int, early_s: float
) -> tuple[int, int]:
    """How many different frames `fps` asks for, and how many of them `max_frames` leaves out.

    A frame that stays on the screen for several samples counts once. So a slow video, all of whose frames are picked,
    is not thinned, however long it is.

    Args:
        seconds: float64 [N], times of the frames, increasing.
        fps: samples per second.
        max_frames: the most samples.
        picked: how many different frames are picked under `max_frames`.
        early_s: a sample also takes a frame that begins by at most so many seconds after it.
    """
    samples = count_at_rate(float(seconds[-1] - seconds[0]), fps)
    if samples <= max_frames:
        times = seconds[0] + np.arange(samples) / fps
        return len(np.unique(np.searchsorted(seconds, times + early_s, side="right"))), 0
    # There may be far more samples than frames, so the first sample that shows a frame is computed for each frame. Of
    # several frames with the same sample only the last one is shown.
    first = np.maximum(np.ceil((seconds - seconds[0] - early_s) * fps), 0)
    asked = len(np.unique(first[first < samples]))
    return asked, max(0, asked - picked)


def sample_times(start: float, end: float, fps: float, max_frames: int, min_frames: int = 1) -> NDArray[np.float64]:
    """The times in seconds at which a video is sampled.

    Samples are 1/fps apart, from `start` on. If that gives more than `max_frames` or fewer than `min_frames`, that many
    samples are spread evenly from `start` to `end`. `end` is the time at which the last frame begins, so that the first
    and the last frame are both sampled.

        sample_times(0, 3.5, fps=1, max_frames=8)  -> 0 1 2 3
        sample_times(0, 9.9, fps=1, max_frames=4)  -> 0 3.3 6.6 9.9
    """
    count = count_at_rate(end - start, fps)
    if min_frames <= count <= max_frames:
        return start + np.arange(count) / fps
    return np.linspace(start, end, min(max(count, min_frames), max_frames))


def sampling_clock(seconds: NDArray[np.float64], fps: float, max_frames: int) -> NDArray[np.float64]:
    """The times of the frames on a clock that stands still while the video has no frames for long.

    Sampling evenly by this clock takes samples where frames are. Nothing changes for a video that can be sampled at
    `fps` within `max_frames`, or that has no long gap: one that is longer than 10 s, than the distance of two samples,
    and than 20 times the usual distance of two frames.

    Args:
        seconds: float64 [N], times of the frames, increasing.
        fps: samples per second.
        max_frames: the most samples.

    Returns:
        float64 [N], increasing, equal to `seconds` up to the first gap.
    """
    steps, span = np.diff(seconds), float(seconds[-1] - seconds[0])
    if max_frames < 3 or span * fps + 1 <= max_frames:
        return seconds
    is_gap = steps > max(_GAP_S, _GAP_RATIO * float(np.median(steps)), span / (max_frames - 1))
    if not is_gap.any():
        return seconds
    # Without a whole number of samples, a gap leaves the samples behind it on the frames that `fps` asks for.
    in_step = np.where(is_gap, steps - np.floor(steps * fps - 1 + 1e-6) / fps, steps)
    if float(in_step.sum()) * fps + 1 <= max_frames:
        return np.concatenate([seconds[:1], seconds[0] + np.cumsum(in_step)])
    left = max_frames - 1 - int(is_gap.sum())
    sample_s = max(1 / fps, float(steps[~is_gap].sum()) / left) if left > 0 else 1 / fps
    steps = np.where(is_gap, np.minimum(steps, sample_s), steps)
    return np.concatenate([seconds[:1], seconds[0] + np.cumsum(steps)])


# Makes the upright RGB picture uint8 [H, W, 3] of a decoded frame, from its stored size (width, height), to which the
# frame is scaled, and from how it lies.
Picture = Callable[[Any, tuple[int, int], Orientation], Pixels]


def picture_on_cpu(frame: Any, size: tuple[int, int], orientation: Orientation) -> NDArray[np.uint8]:
    """The picture of a frame of PyAV, as swscale makes it."""
    # One thread: swscale keeps its threads, and their stacks, as long as the frame lives.
    return orientation.upright(frame.to_ndarray(format="rgb24", width=size[0], height=size[1], threads=1))


class FrameKeeper:
    """Keeps the wanted frames out of all decoded frames. It holds at most one frame beside those it keeps.

    Args:
        index: the index of the video stream.
        wanted: int64 [T], time stamps of the frames to keep, increasing.
        max_pixels: the most pixels of a decoded frame.
        where: name of the video, for error messages.
        buffer: where the wanted frames are kept; what it holds is dropped first.
        picture: makes the upright picture of a decoded frame.
    """

    def __init__(
        self,
        index: VideoIndex,
        wanted: NDArray[np.int64],
        max_pixels: int,
        where: str,
        buffer: FrameBuffer,
        picture: Picture = picture_on_cpu,
    ) -> None:
        self._picture = picture
        self.index, self.wanted, self.max_pixels, self.where, self.buffer = index, wanted, max_pixels, where, buffer
        self.pts: list[int] = []
        buffer.clear()
        self.size = (0, 0)  # width and height of the kept frames, upright, before the buffer resizes them
        self.previous: _Decoded | None = None
        self.bad_packets = self.torn_packets = self.bad_frames = self.late_frames = self.scaled = self.suspect = 0
        self.next = 0  # position in `wanted`
        self.begin_stream()

    def begin_stream(self) -> None:
        """Forget what holds for the frames of one stream only."""
        self.orientation = Orientation()
        self.is_suspect = False  # the next frame is predicted from damaged data

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to forget the frames that are offered from now on."""
        return {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to an earlier state."""
        vars(self).update(state)
        self.buffer.truncate(len(self.pts))

    def lose_packet(self) -> None:
        """Note that the decoder could not decode a packet."""
        self.bad_packets += 1
        self.is_suspect = True

    def tear_packet(self) -> None:
        """Note that a part of the next packet for the decoder is missing, as the container says."""
        self.torn_packets += 1
        self.is_suspect = True

    def offer(self, frame: Any) -> None:
        """Take the next decoded frame in presentation order and keep it if it is wanted.

        Raises:
            VideoError: `too_many_pixels`, if the frame has more than `max_pixels`.
        """
        is_wanted = self.next < len(self.wanted) and frame.pts is not None and frame.pts >= self.wanted[self.next]
        # A message inside an H.264 or HEVC stream turns its own frame and those after it; FFmpeg names it only once.
        # Reading the side data of every frame would cost as much as listing its packet.
        may_turn = is_wanted or frame.key_frame or frame.rotation
        if may_turn and (matrix := display_matrix(frame)) is not None:
            self.orientation = read_display_matrix(matrix)
        self.bad_frames += frame.is_corrupt
        if frame.is_corrupt:
            self.is_suspect = True
        elif frame.key_frame or frame.pts in self.index.key_pts:
            self.is_suspect = False
        if frame.pts is None or (self.previous is not None and frame.pts <= self.previous.pts):
            self.late_frames += 1
            return
        if frame.width * frame.height > self.max_pixels:
            what = f"a frame of {frame.width}×{frame.height}, over max_pixels={self.max_pixels}"
            raise VideoError("too_many_pixels", f"{self.where} has {what}; scale it down")
        while self.next < len(self.wanted) and frame.pts > self.wanted[self.next]:
            self._take(self.previous)
        self.previous = _Decoded(frame, frame.pts, self.orientation, self.is_suspect)
        if self.next < len(self.wanted) and frame.pts == self.wanted[self.next]:
            self._take(self.previous)

    def _take(self, decoded: "_Decoded | None") -> None:
        self.next += 1
        if decoded is None or (self.pts and decoded.pts <= self.pts[-1]):
            return
        if not self.pts:
            self.size = decoded.upright_size
        self.scaled += self.size != decoded.upright_size
        self.suspect += decoded.is_suspect
        self.buffer.append(self._picture(decoded.frame, decoded.swapped(self.size), decoded.orientation))
        self.pts.append(decoded.pts)

    def finish(self) -> tuple[Pixels, NDArray[np.float64], tuple[str, ...]]:
        """Return the kept frames after all frames were offered.

        Returns:
            Pixels uint8 [T, H, W, 3], times float64 [T] in seconds, and warnings.

        Raises:
            VideoError: `no_frames` if no wanted frame was decoded; `damaged` if less than half of them were, or if
                less than half of them were decoded from sound data.
        """
        while self.next < len(self.wanted):
            self._take(self.previous)
        count, total = len(self.pts), len(self.wanted)
        if not self.pts:
            raise VideoError(
                "no_frames", f"{self.where}: none of its {total} sampled frames can be decoded; copy it again"
            )
        seconds = (np.array(self.pts) - self.index.pts[0]) * self.index.time_base
        if count - self.suspect < _MIN_SOUND_RATIO * total:
            span = (
                f"decoded {count} of {total} sampled frames, up to {seconds[-1]:.1f} s of {self.index.duration_s:.1f} s"
            )
            wrong = f", and {self.suspect} of them from damaged data" if self.suspect else ""
            raise VideoError("damaged", f"{self.where}: {span}{wrong}; copy it again")
        counts = {
            "packets cannot be decoded": self.bad_packets,
            "packets are incomplete": self.torn_packets,
            "decoded frames are damaged": self.bad_frames,
            "sampled frames come from damaged data and may look wrong": self.suspect,
            "decoded frames have no time after the frame before them and are left out": self.late_frames,
            "sampled frames are lost": total - count,
            "sampled frames are scaled to the size of the first": self.scaled,
        }
        return self.buffer.pixels, seconds, tuple(f"{n} {what}" for what, n in counts.items() if n)


class _Decoded(NamedTuple):
    frame: Any
    pts: int
    orientation: Orientation
    is_suspect: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        return self.swapped((self.frame.width, self.frame.height))

    def swapped(self, size: tuple[int, int]) -> tuple[int, int]:
        """An upright size as stored, or a stored size upright: both are (width, height)."""
        return size[::-1] if self.orientation.swaps_axes else size
