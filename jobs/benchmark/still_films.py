"""Generate videos in which much stands still: slides, a cartoon, and a camera on a wall.

All have 640x360 pixels at 10 frames a second, and are encoded as H.264. A generated picture that stands still is equal
from frame to frame before it is encoded, except that of the camera, which has the noise of a sensor.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sttm.synthetic.encode import encode_clip

_HEIGHT, _WIDTH, _FPS = 360, 640, 10
_SLIDE_S = 9
_NOISE = 2.0  # standard deviation of the camera's noise, in levels from 0 to 255

Pixels = NDArray[np.uint8]


def encode_still_film(kind: str, seconds: int) -> bytes:
    """An MP4 file of one of `STILL_FILMS`. The same arguments give the same pictures."""
    draw, generator = STILL_FILMS[kind], np.random.default_rng(0)
    return encode_clip(np.stack([draw(number / _FPS, generator) for number in range(seconds * _FPS)]), _FPS)


def _slides(at_s: float, generator: np.random.Generator) -> Pixels:
    """Black lines of words on white; another slide every nine seconds."""
    words = np.random.default_rng(int(at_s / _SLIDE_S))
    picture = np.full((_HEIGHT, _WIDTH, 3), 245, np.uint8)
    for top in range(40, _HEIGHT - 40, 26):
        for left in range(50, int(words.integers(200, _WIDTH - 60)), 8):
            picture[top : top + int(words.integers(4, 14)), left : left + int(words.integers(1, 7))] = 20
    return picture


def _cartoon(at_s: float, generator: np.random.Generator) -> Pixels:
    """A flat figure before flat hills: it walks for two seconds and stands for three, and the scenery stays."""
    columns = np.arange(_WIDTH)
    hills = (220 + 40 * np.sin(columns / 60)).astype(int)
    picture = np.empty((_HEIGHT, _WIDTH, 3), np.uint8)
    picture[:] = (150, 200, 240)
    picture[np.arange(_HEIGHT)[:, None] > hills] = (90, 160, 70)
    walked_s = 2 * (at_s // 5) + min(at_s % 5, 2.0)
    left = int(walked_s * 40) % (_WIDTH - 60)
    picture[190:300, left : left + 50] = (200, 60, 50)
    return picture


def _camera(at_s: float, generator: np.random.Generator) -> Pixels:
    """A yard with the noise of a sensor, through which something passes every twenty seconds."""
    yard = np.random.default_rng(0).integers(40, 200, (_HEIGHT // 20, _WIDTH // 20, 3)).repeat(20, 0).repeat(20, 1)
    picture = yard + generator.normal(0, _NOISE, yard.shape)
    if at_s % 20 < 4:
        left = int(at_s % 20 * 150)
        picture[200:280, left : left + 40] = 230
    return picture.clip(0, 255).astype(np.uint8)


STILL_FILMS: dict[str, Callable[[float, np.random.Generator], Pixels]] = {
    "slides": _slides,
    "cartoon": _cartoon,
    "camera": _camera,
}
