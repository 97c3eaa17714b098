"""Questions about a scene, with answers that follow from the scene alone.

An *object* is one of `Scene.objects`; the flash and the glyph are not objects. A question names an object only by
properties that no other object of the clip has ("the red object", "the star", "the red star").
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from sttm.synthetic.scene import Scene, Thing
from sttm.synthetic.vocabulary import (
    COLOURS,
    COUNTS,
    DIGITS,
    DIRECTIONS,
    FLASH_COLOURS,
    LETTERS,
    NONE,
    SHAPES,
    TASKS,
)

YES_NO = ("yes", "no")
NOT_MOVING = "nowhere"
CLEARLY = 0.12
"""Two objects are left/right (above/below) of each other if their centres differ by this share of the frame's side."""
ABSENT = 0.4
"""Probability of a question about something absent: enough to learn "none", too little to guess it blindly."""


@dataclass(frozen=True)
class Question:
    """A question, its possible answers, the right answer, and the task (one of `TASKS`) it belongs to."""

    text: str
    options: tuple[str, ...]
    answer: str
    task: str

    def __post_init__(self) -> None:
        if self.answer not in self.options:
            raise ValueError(f"answer {self.answer!r} to {self.text!r} is not among its options {self.options}")
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known: {', '.join(TASKS)}")


def questions(scene: Scene, rng: random.Random | None = None) -> list[Question]:
    """All questions about a scene, grouped by task in the order of `TASKS`, each question in one phrasing.

    Args:
        scene: the scene.
        rng: draws the phrasings and the absent things that are asked about. None derives it from the scene's key.
    """
    rng = rng or random.Random(f"questions {scene.key}")  # noqa: S311 - reproducible data, no secrets
    makers = (_colour, _shape, _count, _direction, _relation, _order, _flash, _glyph, _presence)
    return [question for make in makers for question in make(scene, rng)]


def _names(scene: Scene, thing: Thing) -> list[str]:
    """Phrases that name this object and no other; empty if another object has the same colour and shape."""
    colours = [o.colour for o in scene.objects]
    shapes = [o.sprite for o in scene.objects]
    pairs = [(o.colour, o.sprite) for o in scene.objects]
    if pairs.count((thing.colour, thing.sprite)) > 1:
        return []
    names = [f"{thing.colour} {thing.sprite}"]
    names += [f"{thing.colour} object"] * (colours.count(thing.colour) == 1)
    names += [thing.sprite] * (shapes.count(thing.sprite) == 1)
    return names


def _named(scene: Scene, rng: random.Random) -> list[tuple[Thing, str]]:
    return [(thing, rng.choice(names)) for thing in scene.objects if (names := _names(scene, thing))]


def _colour(scene: Scene, rng: random.Random) -> Iterator[Question]:
    ways = ("What colour is the {}?", "Which colour does the {} have?", "What is the colour of the {}?")
    shapes = [o.sprite for o in scene.objects]
    options = (*COLOURS, NONE)
    for thing in scene.objects:
        if shapes.count(thing.sprite) == 1:
            yield Question(rng.choice(ways).format(thing.sprite), options, thing.colour, "colour")
    if rng.random() < ABSENT:
        absent = rng.choice([s for s in SHAPES if s not in shapes])
        yield Question(rng.choice(ways).format(absent), options, NONE, "colour")


def _shape(scene: Scene, rng: random.Random) -> Iterator[Question]:
    ways = ("What shape is the {} object?", "Which shape is {}?", "What is the shape of the {} object?")
    colours = [o.colour for o in scene.objects]
    options = (*SHAPES, NONE)
    for thing in scene.objects:
        if colours.count(thing.colour) == 1:
            yield Question(rng.choice(ways).format(thing.colour), options, thing.sprite, "shape")
    if rng.random() < ABSENT:
        absent = rng.choice([c for c in COLOURS if c not in colours])
        yield Question(rng.choice(ways).format(absent), options, NONE, "shape")


def _count(scene: Scene, rng: random.Random) -> Iterator[Question]:
    ways = ("How many {} are there?", "How many {} can you see?", "What is the number of {}?")
    colours = [o.colour for o in scene.objects]
    shapes = [o.sprite for o in scene.objects]
    yield Question(rng.choice(ways).format("objects"), COUNTS, str(len(scene.objects)), "count")
    for kinds, present in ((tuple(COLOURS), colours), (SHAPES, shapes)):
        # Ask about every kind seen more than once, and one random kind. Otherwise 0 or 1 would nearly always be right.
        repeated = [kind for kind in kinds if present.count(kind) > 1]
        for kind in [*repeated, rng.choice(kinds if rng.random() < ABSENT else present)]:
            noun = f"{kind} objects" if kind in COLOURS else f"{kind}es" if kind == "cross" else f"{kind}s"
            yield Question(rng.choice(ways).format(noun), COUNTS, str(present.count(kind)), "count")


def _direction(scene: Scene, rng: random.Random) -> Iterator[Question]:
    ways = ("In which direction does the {} move?", "Which way does the {} go?", "Where does the {} move?")
    for thing, name in _named(scene, rng):
        options = (*DIRECTIONS, NOT_MOVING)
        yield Question(rng.choice(ways).format(name), options, thing.direction or NOT_MOVING, "direction")


def _relation(scene: Scene, rng: random.Random) -> Iterator[Question]:
    named = _named(scene, rng)
    for a, name_a in named:
        for b, name_b in named:
            if a is b:
                continue
            for axis, (low, high) in enumerate((("left", "right"), ("above", "below"))):
                side = _side(a, b, axis)
                if side:
                    yield _ask_relation(rng, name_a, name_b, (low, high), low if side < 0 else high)


def _side(a: Thing, b: Thing, axis: int) -> int:
    """−1 or 1 if `a` is clearly before or after `b` on the axis whenever both are seen, otherwise 0."""
    shared = range(max(a.start, b.start), min(a.stop, b.stop))
    if len(shared) < 4:
        return 0
    gaps = [a.centre(t)[axis] - b.centre(t)[axis] for t in (shared[0], shared[-1])]
    return -1 if max(gaps) <= -CLEARLY else 1 if min(gaps) >= CLEARLY else 0


def _ask_relation(rng: random.Random, a: str, b: str, sides: tuple[str, str], answer: str) -> Question:
    of = "of the" if sides[0] == "left" else "the"
    if rng.random() < 0.5:
        return Question(f"Is the {a} {sides[0]} or {sides[1]} {of} {b}?", sides, answer, "relation")
    claim = rng.choice(sides)
    return Question(f"Is the {a} {claim} {of} {b}?", YES_NO, "yes" if claim == answer else "no", "relation")


def _order(scene: Scene, rng: random.Random) -> Iterator[Question]:
    late = [(thing, _names(scene, thing)) for thing in scene.objects if thing.start > 0]
    for a, names_a in late:
        for b, names_b in late:
            if a is b or not names_a or not names_b:
                continue
            name_a, name_b = rng.choice(names_a), rng.choice(names_b)
            if a.colour != b.colour and rng.random() < 0.7:
                yield _ask_first(rng, a, b)
            else:
                earlier = "before" if rng.random() < 0.5 else "after"
                holds = (a.start < b.start) == (earlier == "before")
                text = f"Does the {name_a} appear {earlier} the {name_b}?"
                yield Question(text, YES_NO, "yes" if holds else "no", "order")


def _ask_first(rng: random.Random, a: Thing, b: Thing) -> Question:
    a_name, b_name = f"{a.colour} {a.sprite}", f"{b.colour} {b.sprite}"
    first, last = (a, b) if a.start < b.start else (b, a)
    word, hit = rng.choice((("first", first), ("last", last)))
    ways = ("Which appears {}, the {} or the {}?", "What appears {}, the {} or the {}?")
    text = rng.choice(ways).format(word, a_name, b_name)
    return Question(text, (a.colour, b.colour), hit.colour, "order")


def _flash(scene: Scene, rng: random.Random) -> Iterator[Question]:
    flash = scene.flash
    ways = ("What colour flashed?", "Which colour flashed briefly?", "What is the colour of the flash?")
    yield Question(rng.choice(ways), (*FLASH_COLOURS, NONE), flash.colour if flash else NONE, "flash")
    ways = ("What shape flashed?", "Which shape flashed briefly?", "What is the shape of the flash?")
    yield Question(rng.choice(ways), (*SHAPES, NONE), flash.sprite if flash else NONE, "flash")
    if rng.random() < 0.3:
        yield Question("Did anything flash?", YES_NO, "yes" if flash else "no", "flash")


def _glyph(scene: Scene, rng: random.Random) -> Iterator[Question]:
    glyph = scene.glyph
    for kind, known in (("digit", DIGITS), ("letter", LETTERS)):
        ways: tuple[str, ...] = (f"Which {kind} is shown?", f"What {kind} can you see?", f"What is the {kind}?")
        shown = glyph.sprite if glyph and glyph.sprite in known else NONE
        if shown != NONE or rng.random() < 0.3:
            yield Question(rng.choice(ways), (*known, NONE), shown, "glyph")
        if shown != NONE and glyph:
            ways = (f"What colour is the {kind}?", f"Which colour does the {kind} have?")
            yield Question(rng.choice(ways), tuple(COLOURS), glyph.colour, "glyph")


def _presence(scene: Scene, rng: random.Random) -> Iterator[Question]:
    ways = ("Is there a {}?", "Can you see a {}?", "Does a {} appear?")
    pairs = {(o.colour, o.sprite) for o in scene.objects}
    for colour, shape in sorted(pairs):
        if rng.random() < 0.7:
            yield Question(rng.choice(ways).format(f"{colour} {shape}"), YES_NO, "yes", "presence")
        # The hardest "no" is a colour and a shape that both appear, but not together.
        other = rng.choice([o.sprite for o in scene.objects] + [rng.choice(SHAPES)])
        tint = rng.choice([colour, rng.choice(tuple(COLOURS))])
        answer = "yes" if (tint, other) in pairs else "no"
        yield Question(rng.choice(ways).format(f"{tint} {other}"), YES_NO, answer, "presence")
