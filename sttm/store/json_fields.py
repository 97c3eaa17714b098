"""Dataclasses from JSON objects of unknown origin: every value has the type of its field."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(kind: type[T], body: Any) -> T:
    """A dataclass of a JSON object; inner objects become inner dataclasses, unless they are ones already.

    Raises:
        TypeError: the body is no object, a field without a default is missing, a key is unknown, or a value is not of
            its field's type.
    """
    if not isinstance(body, dict):
        raise TypeError(f"{kind.__name__} is not an object")
    types = get_type_hints(kind)
    return kind(**{name: _value(types.get(name, Any), value, name) for name, value in body.items()})


def known_fields(kind: type, body: Any) -> dict[str, Any]:
    """Those entries of a JSON object that are fields of a dataclass and have the right type; others are left out.

    For sections that other versions of the program may have written with fewer, further or other fields. A body that
    is no object has no such entries.
    """
    types = get_type_hints(kind)
    entries = body.items() if isinstance(body, dict) else ()
    return {name: _converted(value) for name, value in entries if name in types and _fits(value, types[name])}


def _value(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value)  # type: ignore[arg-type]
    if not _fits(value, kind):
        raise TypeError(f"{name} is {ascii(value)[:80]}")
    return _converted(value)


def _converted(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type. Counts and sizes are not negative, and fit into a table's columns."""
    if kind is int:
        return type(value) is int and 0 <= value < 1 << 63
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) < 1 << 53)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, choice) for choice in inner)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin in (Mapping, dict):  # JSON has only text as keys
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    return kind is Any or type(value) is kind
