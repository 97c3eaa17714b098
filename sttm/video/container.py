"""Facts about a video file that its structure shows without a decoder: is it cut off, encrypted, or several in one."""

import re

_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_MP4_BOXES = (
    *_MP4_FIRST_BOXES,
    b"moof",
    b"mfra",
    b"sidx",
    b"ssix",
    b"pdin",
    b"uuid",
    b"meta",
    b"prft",
    b"emsg",
    b"pnot",
)
_FLV_MAGIC, _FLV_HEADER = b"FLV\x01", rb"FLV\x01[\x01\x04\x05]\x00\x00\x00\x09\x00\x00\x00\x00"
_EBML_MAGIC, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_cut_off(data: memoryview) -> bool:
    """Whether a file is cut off, as far as its structure shows.

    A Matroska file is cut off if it ends inside its outermost element. An MP4 is cut off if it ends inside one of its
    outermost boxes or before its index, or if it lacks fragments that a segment index (`sidx`) lists. Bytes behind the
    last box that are no box are junk, which some programs append.
    """
    if data[:4] == _EBML_MAGIC:
        return _matroska_end(data) > len(data)
    if bytes(data[4:8]) not in _MP4_FIRST_BOXES:
        return False
    at, kinds, end = 0, set(), 0
    while at + 8 <= len(data):
        size, kind, header = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8]), 8
        if kind not in _MP4_BOXES and at + size > len(data):
            break
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        kinds.add(kind)
        if size < 8:  # 0 means up to the end of the file; 2 to 7 are invalid, which the decoder will report
            break
        if kind == b"sidx":
            end = max(end, at + size + _indexed_bytes(data[at + header : at + size]))
        at += size
        end = max(end, at)
    return end > len(data) or b"moov" not in kinds


def _indexed_bytes(sidx: memoryview) -> int:
    """How many bytes behind a segment index its segments reach; 0 if the index itself is cut off."""
    wide = 8 if bytes(sidx[:1]) == b"\x01" else 4
    first = int.from_bytes(sidx[12 + wide : 12 + 2 * wide], "big")
    at = 12 + 2 * wide + 4
    count = int.from_bytes(sidx[at - 2 : at], "big")
    sizes = [int.from_bytes(sidx[i : i + 4], "big") & 0x7FFFFFFF for i in range(at, at + 12 * count, 12)]
    return first + sum(sizes) if len(sidx) >= at + 12 * count else 0


def declared_fragments_s(data: memoryview) -> float | None:
    """The duration in seconds that the header of a fragmented MP4 declares (`mehd`); None if it declares none."""
    if bytes(data[4:8]) not in _MP4_FIRST_BOXES:
        return None
    moov = _box(data, b"moov")
    mvhd, mehd = _box(moov, b"mvhd"), _box(_box(moov, b"mvex"), b"mehd")
    if len(mvhd) < 24 or len(mehd) < 8:
        return None
    at = 20 if mvhd[0] else 12
    timescale, ticks = int.from_bytes(mvhd[at : at + 4], "big"), int.from_bytes(mehd[4 : 12 if mehd[0] else 8], "big")
    return ticks / timescale if timescale and ticks else None


def _box(data: memoryview, kind: bytes) -> memoryview:
    """What is in the first box of a kind; nothing if there is no such box."""
    at = 0
    while at + 8 <= len(data):
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if bytes(data[at + 4 : at + 8]) == kind:
            return data[at + header : at + size if size else len(data)]
        if size < 8:
            break
        at += size
    return data[:0]


def _matroska_end(data: memoryview) -> int:
    """The offset at which the Segment element ends; 0 if its size is unknown, as in live recordings."""
    header, at = _vint(data, 4)
    at += header
    if data[at : at + 4] != _MATROSKA_SEGMENT:
        return 0
    size, start = _vint(data, at + 4)
    return start + size if size else 0


def _vint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a variable-length integer of EBML.

    Returns:
        The value, or 0 if all its bits are one, which means unknown; and the offset behind the integer.
    """
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length() if first else 8
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (0 if value == (1 << 7 * length) - 1 else value), at + length


def is_protected(data: memoryview) -> bool:
    """Whether an MP4 describes its video as encrypted (ISO/IEC 23001-7)."""
    return bytes(data[4:8]) in _MP4_FIRST_BOXES and re.search(rb"stsd.{12}encv", data, re.DOTALL) is not None


def count_recordings(data: memoryview) -> int:
    """How many whole files an MP4 or FLV consists of, as after `cat`; decoders read the first. 1 for other formats."""
    if bytes(data[:4]) == _FLV_MAGIC:
        return 1 + sum(1 for _ in re.finditer(_FLV_HEADER, data[13:]))
    if bytes(data[4:8]) not in _MP4_FIRST_BOXES:
        return 1
    at, count = 0, 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        count += bytes(data[at + 4 : at + 8]) == b"moov"
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            break
        at += size
    return max(1, count)
