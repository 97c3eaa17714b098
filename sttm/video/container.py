"""Facts about a video file that its structure shows without a decoder: is it cut off, and where can decoding start."""

from collections.abc import Iterator

_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_EBML_MAGIC, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_cut_off(data: memoryview) -> bool:
    """Whether an MP4 or Matroska file ends inside one of its outermost elements, or an MP4 before its index."""
    if data[:4] == _EBML_MAGIC:
        return _matroska_end(data) > len(data)
    if bytes(data[4:8]) not in _MP4_FIRST_BOXES:
        return False
    at, kinds = 0, set()
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        kinds.add(kind)
        if size < 8:  # 0 means up to the end of the file; 2 to 7 are invalid, which the decoder will report
            break
        at += size
    return at > len(data) or b"moov" not in kinds


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


def is_entry_point(packet: memoryview, codec: str, extradata: bytes) -> bool:
    """Whether decoding can start at this keyframe packet of an MP4 or Matroska file.

    Muxers also mark recovery points of H.264 as keyframes, but after a recovery point several frames are still wrong.

    Args:
        packet: the bytes of the packet.
        codec: FFmpeg's name of the codec; for codecs other than h264 and hevc the answer is always True.
        extradata: the decoder configuration record of the stream.
    """
    if codec not in ("h264", "hevc"):
        return True
    at_length = 4 if codec == "h264" else 21
    if len(extradata) <= at_length or extradata[0] != 1:
        return False
    kinds = _nal_headers(packet, (extradata[at_length] & 3) + 1)
    if codec == "h264":
        return any(k & 31 == 5 for k in kinds)  # IDR
    return any(16 <= (k >> 1) & 63 <= 21 for k in kinds)  # IRAP; its leading pictures show in the time stamps


def _nal_headers(packet: memoryview, length_bytes: int) -> Iterator[int]:
    at = 0
    while at + length_bytes < len(packet):
        yield packet[at + length_bytes]
        at += length_bytes + int.from_bytes(packet[at : at + length_bytes], "big")
