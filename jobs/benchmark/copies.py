"""Copies of video files that decode alike and have different contents, so that a store holds none of them yet.

Each copy has its number behind its last byte, in an element that players skip: a box `free` (MP4, MOV), a Void element
(Matroska, WebM), a null packet (MPEG transport stream), a padding packet (MPEG program stream) or a chunk JUNK (AVI).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sttm.errors import ConfigError

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_MATROSKA, _PROGRAM_STREAM = b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba"
_SYNC, _NULL_PACKET = 0x47, b"\x47\x1f\xff\x10"
_HEAD_BYTES = 2 * 192 + 1


def write_copies(folder: Path, sources: Sequence[Path], count: int) -> None:
    """Write `count` files, no two of which have the same content, into a new folder.

    Args:
        folder: the folder, which must not exist yet.
        sources: videos, which are copied in turn.
        count: number of files.

    Raises:
        ConfigError: a source is of a format that has no known element to skip.
    """
    folder.mkdir(parents=True)
    for number in range(count):
        source = sources[number % len(sources)]
        with source.open("rb") as file:
            mark = _mark(file.read(_HEAD_BYTES), number.to_bytes(8, "big"), source)
        copy = folder / f"{number:05d}{source.suffix}"
        shutil.copyfile(source, copy)
        with copy.open("ab") as file:
            file.write(mark)


def _mark(head: bytes, number: bytes, source: Path) -> bytes:
    """An element that holds the number, in the format of the file that begins with `head`."""
    if head[4:8] in _MP4_BOXES:
        return (8 + len(number)).to_bytes(4, "big") + b"free" + number
    if head.startswith(_MATROSKA):
        return b"\xec" + (0x80 | len(number)).to_bytes(1, "big") + number
    if head.startswith(_PROGRAM_STREAM):
        return b"\x00\x00\x01\xbe" + len(number).to_bytes(2, "big") + number
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return b"JUNK" + len(number).to_bytes(4, "little") + number
    for prefix in (b"", bytes(4)):  # packets of 188 bytes, or of 192 with a time stamp before each
        size = len(prefix) + 188
        if len(head) > size + len(prefix) and head[len(prefix)] == head[size + len(prefix)] == _SYNC:
            return (prefix + _NULL_PACKET + number).ljust(size, b"\xff")
    formats = "MP4, MOV, Matroska, WebM, MPEG-TS, MPEG-PS or AVI"

    raise ConfigError(f"{source}: only {formats} can be copied with other contents; convert it, or leave it out")
