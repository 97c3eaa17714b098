"""How large a video's frames are shown to a model whose vision tower takes any size.

A checkpoint that describes its video preprocessing is taken at its word. Qwen2-VL's and Qwen2.5-VL's describe images
only, whose limit of 16,384 tokens makes 172,000 of two minutes of 1080p; they get the bounds that
Qwen's own preprocessing of videos had at their release (qwen_vl_utils/vision_process.py; the total has been raised
since, beyond the positions of a 7B model) instead. The setting `model.frame_pixels` goes before both.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelBounds:
    """Bounds of a frame's width x height after resizing, in pixels.

    Attributes:
        least, most: of one frame.
        total: of all frames together, which lowers `most` in a long video; None: no such bound.
    """

    least: int
    most: int
    total: int | None = None

    def for_video(self, frames: int) -> tuple[int, int]:
        """(least, most) pixels of a frame of a video of so many; a total leaves each a little more than `least`."""
        if self.total is None:
            return self.least, self.most
        return self.least, max(min(self.most, self.total // frames), int(self.least * 1.05))

    def with_frame_pixels(self, frame_pixels: int) -> "PixelBounds":
        """The same with a setting in place of `most` and `total`."""
        return PixelBounds(min(self.least, frame_pixels), frame_pixels)
