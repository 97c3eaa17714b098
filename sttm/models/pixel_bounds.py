"""The size of a video's frames for a model whose vision tower takes frames of any size.

If a checkpoint describes its video preprocessing, its bounds are used. The checkpoints of Qwen2-VL and Qwen2.5-VL
describe images only, with a limit of 16,384 tokens that would turn two minutes of 1080p into 172,000 tokens. They get
the bounds that Qwen's own tool for videos had at the time of their release instead (qwen_vl_utils/vision_process.py;
its bound for a whole video has been raised since, beyond the positions of a 7B model). The setting `model.frame_pixels`
overrides both.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelBounds:
    """Bounds of a frame's width x height after resizing, in pixels.

    Attributes:
        least: the fewest pixels of one frame.
        most: the most pixels of one frame.
        total: the most pixels of all frames together, which lowers `most` in a long video; None sets no such bound.
    """

    least: int
    most: int
    total: int | None = None

    def for_video(self, frames: int) -> tuple[int, int]:
        """The fewest and the most pixels of each frame of a video with this number of frames.

        However small `total` is, the upper bound stays 5 % above `least`, so that a frame always fits.
        """
        if self.total is None:
            return self.least, self.most
        return self.least, max(min(self.most, self.total // frames), int(self.least * 1.05))

    def with_frame_pixels(self, frame_pixels: int) -> "PixelBounds":
        """Bounds with `frame_pixels` in place of `most`, and without `total`."""
        return PixelBounds(min(self.least, frame_pixels), frame_pixels)
