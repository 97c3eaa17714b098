"""Draw the pictures of an endless film: a textured background pans slowly, and textured things cross it.

Grain covers everything, things move by half pixels, and scenes of 2 to 12 seconds follow each other. So encoding takes
an ordinary bit rate and decoding takes ordinary work.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_LENGTHS_S = (8, 3, 10, 5, 2, 12, 6, 4)
_MARGIN = 256  # pixels by which the camera can move within a scene
_THINGS = 6
_GRAIN_SHIFT = 64  # pixels by which the grain is shifted at random from frame to frame
_GRAIN, _MOST_GRAIN = 3.0, 12  # standard deviation of the grain, and the most, in levels from 0 to 255
_DARKEST, _BRIGHTEST = 16 + _MOST_GRAIN, 235 - _MOST_GRAIN  # so that no level leaves the range with grain on it

Plane = NDArray[np.uint8]


def scene_lengths(frames: int, fps: int) -> list[int]:
    """The number of frames of each scene of a film, of which the last one may be cut short.

    Args:
        frames: frames of the film.
        fps: frames per second.
    """
    lengths: list[int] = []
    while (left := frames - sum(lengths)) > 0:
        lengths.append(min(left, _LENGTHS_S[len(lengths) % len(_LENGTHS_S)] * fps))
    return lengths


def draw_scene(number: int, frames: int, width: int, height: int, fps: int) -> Iterator[Plane]:
    """The planes Y, U and V of each frame of a scene, in the layout of PyAV's yuv420p: uint8 [3/2 height, width].

    Args:
        number: the scene of the film, from 0 on; the same number always gives the same pictures.
        frames: frames of the scene.
        width: width of a frame in pixels, even.
        height: height of a frame in pixels, even.
        fps: frames per second.
    """
    generator = np.random.default_rng(number)
    scene = _Scene(generator, width, height)
    whole = _LENGTHS_S[number % len(_LENGTHS_S)] * fps
    grain = generator.standard_normal((height + _GRAIN_SHIFT, width + _GRAIN_SHIFT), np.float32) * _GRAIN
    # Adding uint8 wraps around, so this adds the signed numbers.
    levels = np.clip(grain.round(), -_MOST_GRAIN, _MOST_GRAIN).astype(np.int8).view(np.uint8)
    for frame, (down, right) in enumerate(generator.integers(_GRAIN_SHIFT, size=(frames, 2))):
        planes = np.empty((height * 3 // 2, width), np.uint8)
        scene.draw(frame / whole, planes[:height], planes[height:].reshape(2, height // 2, width // 2))
        planes[:height] += levels[down : down + height, right : right + width]
        yield planes


class _Scene:
    """A textured background that is larger than the picture, and things that cross it."""

    def __init__(self, generator: np.random.Generator, width: int, height: int) -> None:
        self._place = _half_pixels(_texture(generator, height + _MARGIN, width + _MARGIN))
        tints = [_texture(generator, (height + _MARGIN) // 2, (width + _MARGIN) // 2) for _ in range(2)]
        self._tints = (128 + (np.stack(tints).astype(np.int16) - 128) // 4).astype(np.uint8)
        # Start and end of the movement of the camera and of each thing, as shares of the possible way.
        self._ways = generator.uniform(0, 1, (2, _THINGS + 1, 2))
        self._things = [_half_pixels(_texture(generator, height // 4, width // 6)) for _ in range(_THINGS)]

    def draw(self, share: float, luma: Plane, colour: Plane) -> None:
        """Draw the picture after `share` (0 to 1) of the scene.

        Args:
            share: how much of the scene is over.
            luma: uint8 [height, width], is filled.
            colour: uint8 [2, height / 2, width / 2], both colour planes, is filled.
        """
        height, width = luma.shape
        y, x, background = self._at(0, share, _MARGIN - 1, _MARGIN - 1, self._place)
        luma[:] = background[y : y + height, x : x + width]
        colour[:] = self._tints[:, y // 2 : y // 2 + height // 2, x // 2 : x // 2 + width // 2]
        for number, phases in enumerate(self._things, start=1):
            rows, columns = phases[0, 0].shape
            y, x, thing = self._at(number, share, height - rows, width - columns, phases)
            luma[y : y + rows, x : x + columns] = thing

    def _at(
        self, number: int, share: float, rows: int, columns: int, phases: NDArray[np.uint8]
    ) -> tuple[int, int, Plane]:
        """Row and column, and the texture shifted by the half pixels that are left over."""
        y, x = self._ways[0, number] * (1 - share) + self._ways[1, number] * share
        (row, lower), (column, right) = divmod(int(2 * y * rows), 2), divmod(int(2 * x * columns), 2)
        return row, column, phases[lower, right]


def _half_pixels(texture: Plane) -> NDArray[np.uint8]:
    """uint8 [2, 2, height - 1, width - 1]: the texture, shifted up and to the left by half a pixel or not at all."""
    wide = texture.astype(np.uint16)
    phases = [[wide[:-1, :-1], (wide[:-1, :-1] + wide[:-1, 1:]) // 2]]
    phases.append([(wide[:-1, :-1] + wide[1:, :-1]) // 2, (phases[0][1] + (wide[1:, :-1] + wide[1:, 1:]) // 2) // 2])
    return np.array(phases, np.uint8)


def _texture(generator: np.random.Generator, height: int, width: int) -> Plane:
    """Noise of all scales. The amplitude of an octave grows with its scale, as in photographs."""
    total = np.zeros((height, width), np.float32)
    for step in (64, 32, 16, 8, 4, 2):
        rows, columns = height // step + 2, width // step + 2
        coarse = generator.normal(0, step, (rows, columns)).astype(np.float32)
        y, x = np.arange(height) / step, np.arange(width) / step
        total += _between(_between(coarse, y).T, x).T
    return np.clip(128 + total * (50 / total.std()), _DARKEST, _BRIGHTEST).astype(np.uint8)


def _between(rows: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    """Interpolate linearly between rows."""
    low = at.astype(np.int64)
    share = (at - low).astype(np.float32)[:, None]
    return rows[low] * (1 - share) + rows[low + 1] * share
