"""Generate a film whose decoding costs about as much as that of a real video.

A textured background pans slowly, textured things cross it, grain covers everything, and every eight seconds a new
scene begins. So encoding takes an ordinary bit rate and decoding takes ordinary work.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SCENE_S = 8
_MARGIN = 256  # pixels by which the camera can move within a scene
_THINGS = 6
_GRAIN = 3.0  # standard deviation of the grain, in levels from 0 to 255

Plane = NDArray[np.uint8]


def write_film(
    path: Path, seconds: int = 120, width: int = 1280, height: int = 720, fps: int = 25, bits_per_s: int = 4_000_000
) -> None:
    """Write an H.264 MP4. The same arguments give the same pictures.

    Args:
        path: the file to write.
        seconds: length of the film.
        width: width of a frame in pixels, even.
        height: height of a frame in pixels, even.
        fps: frames per second.
        bits_per_s: average bit rate.
    """
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", bits_per_s
        stream.options = {"preset": "veryfast"}
        stream.codec_context.thread_type, stream.codec_context.thread_count = "AUTO", 0
        for planes in _pictures(seconds * fps, width, height, fps):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))


def describe(path: Path) -> str:
    """One line about a video file: length, frame size, codec, frame rate and bit rate."""
    import av

    with av.open(str(path)) as container:
        video = container.streams.video[0]
        seconds = (container.duration or 0) / av.time_base
        size, codec = f"{video.width}x{video.height}", video.codec_context.name
        rate = f"{float(video.average_rate or 0):.3g} frames/s"
    return f"{seconds:.0f} s of {size} {codec} at {rate}, {path.stat().st_size * 8e-6 / max(seconds, 1e-9):.1f} Mbit/s"


def _pictures(count: int, width: int, height: int, fps: int) -> Iterator[Plane]:
    """The planes Y, U and V of each frame, in the layout of PyAV's yuv420p, uint8 [3/2 height, width]."""
    generator = np.random.default_rng(0)
    grain = [np.rint(generator.normal(0, _GRAIN, (height, width))).astype(np.int16) for _ in range(8)]
    scene = None
    for number in range(count):
        within = number % (_SCENE_S * fps)
        if scene is None or within == 0:
            scene = _Scene(generator, width, height)
        luma = scene.luma(within / (_SCENE_S * fps)) + grain[generator.integers(len(grain))]
        colour = scene.colour(within / (_SCENE_S * fps))
        yield np.concatenate([np.clip(luma, 16, 235).astype(np.uint8), colour.reshape(height // 2, width)])


class _Scene:
    """A textured background that is larger than the picture, and things that cross it."""

    def __init__(self, generator: np.random.Generator, width: int, height: int) -> None:
        self._size = height, width
        self._place = _texture(generator, height + _MARGIN, width + _MARGIN)
        self._tint = [
            (128 + (_texture(generator, (height + _MARGIN) // 2, (width + _MARGIN) // 2) - 128) // 4) for _ in range(2)
        ]
        # Start and end of the movement of the camera and of each thing, as shares of the possible way.
        self._ways = generator.uniform(0, 1, (2, _THINGS + 1, 2))
        self._things = [_texture(generator, height // 4, width // 6) for _ in range(_THINGS)]

    def luma(self, share: float) -> NDArray[np.int16]:
        """Brightness, int16 [height, width], after `share` (0 to 1) of the scene."""
        height, width = self._size
        y, x = self._at(0, share, _MARGIN, _MARGIN)
        picture = self._place[y : y + height, x : x + width].copy()
        for number, thing in enumerate(self._things, start=1):
            y, x = self._at(number, share, height - thing.shape[0], width - thing.shape[1])
            picture[y : y + thing.shape[0], x : x + thing.shape[1]] = thing
        return picture

    def colour(self, share: float) -> Plane:
        """Both colour planes, uint8 [2, height / 2, width / 2], after `share` (0 to 1) of the scene."""
        height, width = self._size
        y, x = (place // 2 for place in self._at(0, share, _MARGIN, _MARGIN))
        return np.stack([tint[y : y + height // 2, x : x + width // 2] for tint in self._tint]).astype(np.uint8)

    def _at(self, number: int, share: float, rows: int, columns: int) -> tuple[int, int]:
        y, x = self._ways[0, number] * (1 - share) + self._ways[1, number] * share
        return int(y * rows), int(x * columns)


def _texture(generator: np.random.Generator, height: int, width: int) -> NDArray[np.int16]:
    """Noise of all scales with levels 16 to 235. The amplitude of an octave grows with its scale, as in photographs."""
    total = np.zeros((height, width), np.float32)
    for step in (64, 32, 16, 8, 4, 2):
        rows, columns = height // step + 2, width // step + 2
        coarse = generator.normal(0, step, (rows, columns)).astype(np.float32)
        y, x = np.arange(height) / step, np.arange(width) / step
        total += _between(_between(coarse, y).T, x).T
    return np.clip(128 + total * (50 / total.std()), 16, 235).astype(np.int16)


def _between(rows: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    """Interpolate linearly between rows."""
    low = at.astype(np.int64)
    share = (at - low).astype(np.float32)[:, None]
    return rows[low] * (1 - share) + rows[low + 1] * share
