"""Typed values out of one untrusted row; a `ValueError` says which is missing or wrong."""

import json
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def text(row: Row, *names: str) -> str:
    """The first of the named cells that is there, as text; numbers are written out."""
    for name in names:
        value = row.get(name)
        if value is not None and value != "":
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError(f"{name} is a {type(value).__name__}, not text")
            return str(value)
    raise ValueError(f"no {names[0]}")


def texts(row: Row, name: str) -> tuple[str, ...]:
    """A list of texts, also one written as JSON into a cell; a missing or empty cell is ()."""
    value = row.get(name)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{name} is not a list: {value[:80]!r}") from None
    if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
        raise ValueError(f"{name} is not a list of texts: {value!r:.80}")
    return tuple(str(item) for item in value)


def whole(row: Row, name: str) -> int:
    """A whole number, also one written as text, as CSV has it."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str | float) or str(value).strip() == "":
        raise ValueError(f"no {name}" if value in (None, "") else f"{name} is {value!r:.80}, not a whole number")
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{name} is {value!r:.80}, not a whole number")
    return int(number)


def place_of(letter: str) -> int:
    """The index that a letter stands for: "A" is 0."""
    if len(letter) != 1 or not "A" <= letter.upper() <= "Z":
        raise ValueError(f"answer {letter[:80]!r} is not a letter")
    return ord(letter.upper()) - ord("A")


def lettered(options: Sequence[str], form: str = "{}. {}") -> tuple[str, ...]:
    """Options with their letters in front: "A. ..."."""
    return tuple(form.format(chr(ord("A") + i), option) for i, option in enumerate(options))


def without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Options that carry their letters, as in "A. red", without them; untouched unless all do, in order."""
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
