"""A synthetic clip as plain values: which things appear, where, when, and how they move. Nothing is drawn here.

Positions and radii are fractions of the frame's side; x grows to the right and y downwards. Times are frame indices.
"""

import random
from dataclasses import dataclass, field

from sttm.synthetic.vocabulary import (
    COLOURS,
    DIGITS,
    DIRECTIONS,
    FLASH_COLOURS,
    GLYPHS,
    LETTERS,
    MAX_OBJECTS,
    SHAPES,
)

GRID_CELLS = 6
"""The coarse colours of a backdrop form a grid with this many cells on each side."""


@dataclass(frozen=True)
class Thing:
    """Something that is drawn in frames start..stop−1.

    Attributes:
        sprite: name of a shape or of a glyph.
        colour: a key of `COLOURS`.
        x: centre in the first frame.
        y: centre in the first frame.
        radius: half of the size.
        start: the first frame in which the thing is seen.
        stop: the frame after the last one in which the thing is seen.
        dx: movement from the first to the last of these frames, in a straight line.
        dy: movement from the first to the last of these frames, in a straight line.
        direction: a key of `DIRECTIONS`; None if the thing stands still.
    """

    sprite: str
    colour: str
    x: float
    y: float
    radius: float
    start: int
    stop: int
    dx: float = 0.0
    dy: float = 0.0
    direction: str | None = None

    def __post_init__(self) -> None:
        if self.sprite not in SHAPES and self.sprite not in GLYPHS:
            raise ValueError(f"unknown sprite {self.sprite!r}: neither a shape nor a glyph")
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a thing must be seen in at least one frame, got frames {self.start}..{self.stop}")

    def centre(self, frame: float) -> tuple[float, float]:
        """Centre (x, y) in a frame from `start` to `stop` − 1."""
        done = (frame - self.start) / max(1, self.stop - 1 - self.start)
        return self.x + self.dx * done, self.y + self.dy * done


@dataclass(frozen=True)
class Backdrop:
    """The background of one take: coarse colours, stripes and fine grain.

    Attributes:
        cells: `GRID_CELLS`² RGB triples, from 0 to 255.
        stripes: cycles per frame side along x and along y, phase in radians, amplitude in grey levels.
        grain: amplitude of the grain in grey levels.
    """

    cells: tuple[tuple[float, float, float], ...]
    stripes: tuple[float, float, float, float]
    grain: float


@dataclass(frozen=True)
class Scene:
    """One clip.

    Attributes:
        key: name of the clip, from which everything random about the clip follows.
        frames: number of frames.
        size: side of the square frame in pixels.
        objects: the things that questions are about.
        flash: a thing on a white plate that is seen for one or two frames; None if there is none.
        glyph: a small digit or letter; None if there is none.
        takes: one backdrop, or two backdrops with a cut between them.
        cut: the first frame that shows the second take; `frames` if there is only one take.
        drift: how far (x, y) the camera moves over the whole clip. It moves backdrop and things together.
        scroll: speed (x, y) per frame of the part of the backdrop that moves by itself.
        scroll_edge: (a, b, c): the part that moves by itself is where x·a + y·b > c. (0, 0, 1) means nowhere.
        noise: standard deviation of the sensor noise in grey levels.
        quantiser: step of the codec's transform coefficients; 0 means no codec.
        grain_offset: place in the fixed tile of noise where the clip's noise starts.
    """

    key: str
    frames: int
    size: int
    objects: tuple[Thing, ...]
    flash: Thing | None
    glyph: Thing | None
    takes: tuple[Backdrop, ...]
    cut: int
    drift: tuple[float, float] = (0.0, 0.0)
    scroll: tuple[float, float] = (0.0, 0.0)
    scroll_edge: tuple[float, float, float] = (0.0, 0.0, 1.0)
    noise: float = 0.0
    quantiser: float = 0.0
    grain_offset: tuple[int, int] = field(default=(0, 0))


def sample_scenes(seed: int, count: int, frames: int = 16, size: int = 392) -> list[Scene]:
    """Draw scenes that follow from `seed` alone. Every (seed, index) has its own stream of random numbers.

    Args:
        seed: seeds from `HELD_OUT_SEED` on are never used for training.
        count: number of scenes.
        frames: number of frames of each clip, at least 8.
        size: side in pixels, a multiple of 56, so that codec blocks and visual tokens tile the frame.

    Raises:
        ValueError: `frames` is below 8, or `size` is not a positive multiple of 56.
    """
    if frames < 8:
        raise ValueError(f"a synthetic clip needs at least 8 frames for its events, got {frames}")
    if size < 56 or size % 56:
        raise ValueError(f"size must be a positive multiple of 56 pixels, got {size}")
    return [_sample_scene(f"{seed}/{index}", frames, size) for index in range(count)]


def _sample_scene(key: str, frames: int, size: int) -> Scene:
    rng = random.Random(key)  # noqa: S311 - reproducible data, no secrets
    scale = (392 / size) ** 0.5  # things are relatively larger in a smaller frame, so that they stay readable
    glyph = _sample_glyph(rng, frames, scale) if rng.random() < 0.7 else None
    objects = _sample_objects(rng, frames, scale, glyph)
    flash = _sample_flash(rng, frames, scale) if rng.random() < 0.6 else None
    cut = rng.randrange(3, frames - 2) if rng.random() < 0.25 else frames
    drifting, scrolling = rng.random() < 0.4, rng.random() < 0.35
    angle = (rng.uniform(-1, 1), rng.uniform(-1, 1))
    return Scene(
        key=key,
        frames=frames,
        size=size,
        objects=objects,
        flash=flash,
        glyph=glyph,
        takes=tuple(_sample_backdrop(rng) for _ in range(2 if cut < frames else 1)),
        cut=cut,
        drift=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)) if drifting else (0.0, 0.0),
        scroll=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)) if scrolling else (0.0, 0.0),
        scroll_edge=(*angle, (angle[0] + angle[1]) * 0.5 + rng.uniform(-0.2, 0.2)) if scrolling else (0.0, 0.0, 1.0),
        noise=rng.uniform(0.5, 3.0) if rng.random() < 0.4 else 0.0,
        quantiser=rng.uniform(4.0, 28.0) if rng.random() < 0.85 else 0.0,
        grain_offset=(rng.randrange(256), rng.randrange(256)),
    )


def _sample_backdrop(rng: random.Random) -> Backdrop:
    grey, spread = rng.uniform(40, 120), rng.choice((0.0, 8.0, 18.0, 28.0))
    tint = [rng.uniform(-18, 18) for _ in range(3)]
    cells = tuple(
        (
            grey + tint[0] + rng.gauss(0, spread),
            grey + tint[1] + rng.gauss(0, spread),
            grey + tint[2] + rng.gauss(0, spread),
        )
        for _ in range(GRID_CELLS**2)
    )
    striped = rng.random() < 0.3
    stripes = (rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6.28), rng.uniform(4, 18) if striped else 0.0)
    return Backdrop(cells, stripes, rng.choice((0.0, 0.0, 4.0, 9.0)))


def _sample_objects(rng: random.Random, frames: int, scale: float, glyph: Thing | None) -> tuple[Thing, ...]:
    wanted = rng.randint(1, MAX_OBJECTS)
    # With few colours and shapes, counting is not trivial; with many, things are easy to name.
    colours = rng.sample(tuple(COLOURS), rng.choice((2, 3, 8, 8)))
    shapes = rng.sample(SHAPES, rng.choice((2, 3, 7, 7)))
    starts = _sample_starts(rng, frames, wanted)
    placed: list[Thing] = []
    for start in starts:
        moving = rng.random() < 0.6
        for _ in range(60):
            thing = _sample_thing(rng, (rng.choice(shapes), rng.choice(colours)), frames, start, scale, moving)
            if all(_keep_apart(thing, other) for other in (*placed, *((glyph,) if glyph else ()))):
                placed.append(thing)
                break
    return tuple(placed)


def _sample_starts(rng: random.Random, frames: int, wanted: int) -> list[int]:
    """First frame of each thing. In more than half of the clips, two or three things appear late, 3 frames apart."""
    late = min(wanted, rng.choice((0, 0, 2, 2, 3)))
    slots = list(range(rng.randint(2, 3), frames - 4, 3))
    times = rng.sample(slots, min(late, len(slots)))
    return times + [0] * (wanted - len(times))


def _sample_thing(
    rng: random.Random, look: tuple[str, str], frames: int, start: int, scale: float, moving: bool
) -> Thing:
    sprite, colour = look
    radius = rng.uniform(0.06, 0.095) * scale
    stop = frames if start or rng.random() < 0.8 else rng.randrange(frames // 2, frames)
    low, high = radius + 0.03, 0.97 - radius
    x, y = rng.uniform(low, high), rng.uniform(low, high)
    if not moving or stop - start < 6:
        return Thing(sprite, colour, x, y, radius, start, stop)
    direction = rng.choice(tuple(DIRECTIONS))
    step_x, step_y = DIRECTIONS[direction]
    way = rng.uniform(0.3, 0.55)
    if step_x:
        x = rng.uniform(low, high - way) + (way if step_x < 0 else 0)
    else:
        y = rng.uniform(low, high - way) + (way if step_y < 0 else 0)
    return Thing(sprite, colour, x, y, radius, start, stop, step_x * way, step_y * way, direction)


def _sample_glyph(rng: random.Random, frames: int, scale: float) -> Thing:
    sprite = rng.choice(DIGITS if rng.random() < 0.5 else LETTERS)
    radius = rng.uniform(0.045, 0.06) * scale
    start = rng.choice((0, 0, rng.randrange(0, frames - 5)))
    x, y = rng.uniform(radius + 0.02, 0.98 - radius), rng.uniform(radius + 0.02, 0.98 - radius)
    return Thing(sprite, rng.choice(tuple(COLOURS)), x, y, radius, start, rng.choice((frames, min(frames, start + 6))))


def _sample_flash(rng: random.Random, frames: int, scale: float) -> Thing:
    radius = rng.uniform(0.08, 0.11) * scale
    start = rng.randrange(1, frames - 2)
    x, y = rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)
    return Thing(rng.choice(SHAPES), rng.choice(FLASH_COLOURS), x, y, radius, start, start + rng.choice((1, 2)))


def _keep_apart(a: Thing, b: Thing) -> bool:
    """Whether two things never touch while both are seen. Both move in straight lines, so the answer is exact."""
    first, last = max(a.start, b.start), min(a.stop, b.stop) - 1
    if first > last:
        return True
    (ax, ay), (bx, by) = a.centre(first), b.centre(first)
    (ex, ey), (fx, fy) = a.centre(last), b.centre(last)
    px, py = ax - bx, ay - by
    vx, vy = (ex - fx) - px, (ey - fy) - py
    speed = vx * vx + vy * vy
    nearest = 0.0 if speed == 0 else min(1.0, max(0.0, -(px * vx + py * vy) / speed))
    gap_x, gap_y = px + vx * nearest, py + vy * nearest
    reach = 1.25 * (a.radius + b.radius)
    return gap_x * gap_x + gap_y * gap_y >= reach * reach
