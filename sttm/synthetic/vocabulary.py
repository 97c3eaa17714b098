"""The colours, shapes, glyphs and directions that a synthetic clip can show, and the words for them."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 36, 40),
    "green": (36, 176, 56),
    "blue": (40, 84, 232),
    "yellow": (244, 220, 36),
    "purple": (152, 48, 204),
    "orange": (248, 136, 24),
    "cyan": (40, 212, 224),
    "white": (250, 250, 250),
}
"""Name → RGB, 0 to 255."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Name → unit step (x, y) in image coordinates: y grows downwards."""

GLYPHS: dict[str, tuple[str, ...]] = {
    "0": ("01110", "10001", "10011", "10101", "11001", "10001", "01110"),
    "1": ("00100", "01100", "00100", "00100", "00100", "00100", "01110"),
    "2": ("01110", "10001", "00001", "00010", "00100", "01000", "11111"),
    "3": ("11111", "00010", "00100", "00010", "00001", "10001", "01110"),
    "4": ("00010", "00110", "01010", "10010", "11111", "00010", "00010"),
    "5": ("11111", "10000", "11110", "00001", "00001", "10001", "01110"),
    "6": ("00110", "01000", "10000", "11110", "10001", "10001", "01110"),
    "7": ("11111", "00001", "00010", "00100", "01000", "01000", "01000"),
    "8": ("01110", "10001", "10001", "01110", "10001", "10001", "01110"),
    "9": ("01110", "10001", "10001", "01111", "00001", "00010", "01100"),
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
    "C": ("01110", "10001", "10000", "10000", "10000", "10001", "01110"),
    "E": ("11111", "10000", "10000", "11110", "10000", "10000", "11111"),
    "H": ("10001", "10001", "10001", "11111", "10001", "10001", "10001"),
    "K": ("10001", "10010", "10100", "11000", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "P": ("11110", "10001", "10001", "11110", "10000", "10000", "10000"),
    "T": ("11111", "00100", "00100", "00100", "00100", "00100", "00100"),
    "X": ("10001", "10001", "01010", "00100", "01010", "10001", "10001"),
    "Z": ("11111", "00001", "00010", "00100", "01000", "10000", "11111"),
}
"""Character → its bitmap of 5×7 pixels, one string for each row."""

DIGITS = tuple(g for g in GLYPHS if g.isdigit())
LETTERS = tuple(g for g in GLYPHS if g.isalpha())
FLASH_COLOURS = tuple(c for c in COLOURS if c != "white")
"""A flash is shown on a white plate, so it is never white."""

NONE = "none"
MAX_OBJECTS = 5
COUNTS = tuple(str(n) for n in range(MAX_OBJECTS + 1))
TASKS = ("colour", "shape", "count", "direction", "relation", "order", "flash", "glyph", "presence")
HELD_OUT_SEED = 1_000_000_000
"""Seeds from here on are held out: `jobs.train_tiny` rejects them, and evaluation and demo use only these seeds."""
