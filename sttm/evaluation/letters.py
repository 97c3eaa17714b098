"""Letters of options: the "A" of "A. two dogs", read from annotation files and written into prompts."""

from collections.abc import Sequence


def place_of(letter: str) -> int:
    """The index that a letter stands for: "A" is 0.

    Raises:
        ValueError: the text is not one letter from A to Z.
    """
    if len(letter) != 1 or not "A" <= letter.upper() <= "Z":
        raise ValueError(f"answer {letter[:80]!r} is not a letter")
    return ord(letter.upper()) - ord("A")


def lettered(options: Sequence[str], form: str = "{}. {}") -> tuple[str, ...]:
    """The options with their letters in front, as in "A. red"."""
    return tuple(form.format(chr(ord("A") + i), option) for i, option in enumerate(options))


def without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """The options without the letters in front of them; unchanged unless all have theirs, in order.

    ("A. red", "B. blue") -> ("red", "blue"); ("A. red", "blue") stays as it is.
    """
    stripped = []
    for i, option in enumerate(options):
        letter = chr(ord("A") + i)
        head = next(
            (h for h in (f"{letter}. ", f"({letter}) ", f"{letter}) ", f"{letter}.") if option.startswith(h)), None
        )
        if head is None:
            return tuple(options)
        stripped.append(option[len(head) :].strip())
    return tuple(stripped)
