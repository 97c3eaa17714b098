"""Hashes of 64 bits by which the catalog sorts videos and finds names; the same in every process and version."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np

# uint64 [hashes]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def text_hashes(texts: Iterable[str]) -> Hashes:
    """The hash of each text, uint64 [texts]; a byte of a name that is not UTF-8 counts as the text `\\udcff`."""
    return np.fromiter(map(_text_hash, texts), np.uint64)


def first_bits(hashes: Hashes, bits: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first `bits` bits of each hash as a number, int64 [hashes]; all 0 if `bits` is 0."""
    return (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)


def distinct(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The different values of an array [n], sorted."""
    # `numpy.unique` would import a large module.
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def is_among(hashes: Hashes, wanted: Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each hash is among the wanted ones, bool [hashes]; `wanted` must be sorted."""
    if not len(wanted):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    return np.asarray(wanted[places] == hashes)


def _text_hash(text: str) -> int:
    data = text.encode("utf-8", "backslashreplace")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
