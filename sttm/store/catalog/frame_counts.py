"""How many frames were taken from some videos, how many the settings asked for, and what takes the frames left out."""

import math
from dataclasses import dataclass
from typing import Any

from sttm.store.catalog.row import CatalogRow
from sttm.store.key import Recipe

_ROUNDING = 2e-6  # sampling takes 1e-6 less than a whole number of samples for the whole number


@dataclass
class FrameCounts:
    """The frames of all videos added so far.

    Attributes:
        videos: how many videos were added.
        thinned: how many of them lack frames that `video.fps` asked for, because of `video.max_frames`.
        duration_s: length of all videos.
        frames: frames taken.
        asked: different frames that `video.fps` asked for.
        left_out: how many of these `video.max_frames` left out.
        tokens_left_out: visual tokens, before the merge, that the frames left out would be about.
        sparsest: the thinned video with the most seconds a frame; None if no video is thinned.
        longest_s: length of the longest thinned video.
    """

    videos: int = 0
    thinned: int = 0
    duration_s: float = 0.0
    frames: int = 0
    asked: int = 0
    left_out: int = 0
    tokens_left_out: float = 0.0
    sparsest: CatalogRow | None = None
    longest_s: float = 0.0

    def add(self, row: CatalogRow) -> None:
        """Count one indexed video."""
        self.videos += 1
        self.duration_s += row.duration_s
        self.frames += row.frames
        self.asked += row.frames_asked
        self.left_out += row.frames_left_out
        if row.is_thinned:
            self.thinned += 1
            self.tokens_left_out += row.tokens_before / max(1, row.frames) * row.frames_left_out
            self.longest_s = max(self.longest_s, row.duration_s)
            self.sparsest = max(self.sparsest or row, row, key=lambda r: r.seconds_per_frame or 0.0)

    @property
    def seconds_per_frame(self) -> float | None:
        """Seconds of video for each frame taken, over all videos; None without a frame."""
        return self.duration_s / self.frames if self.frames else None

    def as_record(self) -> dict[str, Any]:
        """The counts as the summary of a run has them."""
        per_frame = self.seconds_per_frame
        return {
            "video_seconds": round(self.duration_s, 3),
            "frames": self.frames,
            "frames_asked": self.asked,
            "frames_left_out": self.left_out,
            "seconds_per_frame": None if per_frame is None else round(per_frame, 3),
            "thinned": self.thinned,
        }

    def cure(self, recipe: Recipe) -> str:
        """What was left out of the thinned videos, and which settings leave out nothing; empty if none is thinned.

        Args:
            recipe: the recipe that all these videos were indexed with.
        """
        if self.sparsest is None:
            return ""
        fps, most = recipe["video"]["fps"], recipe["video"]["max_frames"]
        return (
            f"{self.thinned} of {self.videos} videos {'is' if self.thinned == 1 else 'are'} thinned: "
            f"video.max_frames={most} left out {self.left_out:,} of the frames that video.fps={fps:g} asks for; "
            f"{self.sparsest.name} has one frame in {self.sparsest.seconds_per_frame or 0:.3g} s.\n"
            f"--set video.max_frames={enough_frames(self.longest_s, fps)} takes them all, for about "
            f"{self.tokens_left_out:,.0f} more visual tokens before the merge "
            f"({self.tokens_left_out / self.left_out:,.0f} a frame); "
            f"--set video.fps={low_enough_fps(self.longest_s, most)} asks for fewer frames, of every video. "
            f"Both change the recipe: every video is indexed again."
        )


def enough_frames(duration_s: float, fps: float) -> int:
    """The least `video.max_frames` that thins no video of this length."""
    return max(1, math.ceil(duration_s * fps))


def low_enough_fps(duration_s: float, max_frames: int) -> str:
    """The highest `video.fps`, rounded down to three digits, that thins no video of this length."""
    fps = (max_frames - _ROUNDING) / duration_s
    step = 10.0 ** (math.floor(math.log10(fps)) - 2)
    return f"{math.floor(fps / step) * step:.3g}"


def frames_text(row: CatalogRow) -> str:
    """How many frames were taken from a video and asked for, such as `128 of 2,400, thinned`; empty if unknown."""
    if not row.frames:
        return ""
    asked = f" of {row.frames_asked:,}" if row.frames_asked else ""
    return f"{row.frames:,}{asked}{', thinned' if row.is_thinned else ''}"


def frames_record(row: CatalogRow) -> dict[str, Any]:
    """What is known of a video's length and frames, as JSON lines and the service show it."""
    per_frame = row.seconds_per_frame
    return {
        "duration_s": round(row.duration_s, 3),
        "frames": row.frames,
        "frames_asked": row.frames_asked,
        "frames_left_out": row.frames_left_out,
        "seconds_per_frame": None if per_frame is None else round(per_frame, 3),
        "thinned": row.is_thinned,
    }
