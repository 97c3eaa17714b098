"""What the headers of AV1 packets say about their pictures (AV1 bitstream specification, 5.5 and 5.9)."""

from collections.abc import Iterator
from typing import NamedTuple

from sttm.video.bits import BitReader
from sttm.video.coded_picture import CLOSED_ENTRY, DISPOSABLE, NEEDED, CodedPicture

_SEQUENCE_HEADER, _TEMPORAL_DELIMITER, _FRAME_HEADER, _TILE_GROUP, _METADATA, _FRAME, _PADDING = 1, 2, 3, 4, 5, 6, 15
_KNOWN = (_TEMPORAL_DELIMITER, _FRAME_HEADER, _TILE_GROUP, _METADATA, _FRAME, _PADDING)
_KEY, _INTRA_ONLY, _SWITCH = 0, 2, 3
_SELECTED_BY_FRAME = 2
_HEADER_BYTES, _SEQUENCE_BYTES = 24, 256
_MAX_UNITS = 10_000


class _Sequence(NamedTuple):
    """What of a sequence header is needed to find out which references a frame refreshes.

    Attributes:
        frame_id_bits: bits of the frame's number in a frame header; 0 if frame headers have none.
        screen_content: `seq_force_screen_content_tools`; 2 lets each frame header decide.
        integer_motion: `seq_force_integer_mv`; 2 lets each frame header decide.
        order_hint_bits: bits of the order hint in a frame header; 0 if frame headers have none.
    """

    frame_id_bits: int
    screen_content: int
    integer_motion: int
    order_hint_bits: int


class Av1Pictures:
    """Reads the packets of an AV1 stream, in file order.

    Args:
        extradata: the configuration record of the stream.
    """

    def __init__(self, extradata: bytes) -> None:
        self._sequence: _Sequence | None = None
        for kind, unit in _units(memoryview(extradata)[4:]):
            if kind == _SEQUENCE_HEADER:
                self._sequence = _read_sequence(bytes(unit[:_SEQUENCE_BYTES]))

    def read(self, packet: memoryview, is_key: bool) -> CodedPicture:
        """What the headers of a packet say: a picture is disposable if it refreshes no reference.

        Args:
            packet: the bytes of the packet.
            is_key: whether the container marks the packet as a key, which is taken for granted.
        """
        frames, is_known = [], True
        for kind, unit in _units(packet):
            if kind == _SEQUENCE_HEADER:
                self._sequence = _read_sequence(bytes(unit[:_SEQUENCE_BYTES]))
            is_known &= kind in _KNOWN
            if kind in (_FRAME_HEADER, _FRAME):
                frames.append(unit)
            if len(frames) > 1 or not is_known:
                break
        if is_key:
            return CLOSED_ENTRY
        if not is_known or len(frames) != 1 or self._sequence is None:
            return NEEDED
        return DISPOSABLE if _is_disposable(bytes(frames[0][:_HEADER_BYTES]), self._sequence) else NEEDED


def _units(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of the open bitstream units; kind -1 where the data is damaged or has spatial layers."""
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data):
            return
        kind, has_extension, has_size = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        if has_extension and at + 1 < len(data) and data[at + 1] >> 3 & 3:
            yield -1, data[:0]
        start = at + 1 + has_extension
        size, shift = 0, 0
        while has_size and start < len(data) and shift < 56:
            byte = data[start]
            size, shift, start = size | (byte & 127) << shift, shift + 7, start + 1
            if byte < 128:
                break
        at = start + size if has_size else len(data)
        if at > len(data):
            yield -1, data[:0]
        yield kind, data[start:at]


def _read_sequence(data: bytes) -> _Sequence | None:
    """What a sequence header says; None for stills and for streams with a model of the decoder's buffers."""
    reader = BitReader(data)
    reader.bits(3)  # profile
    if reader.bits(1) or reader.bits(1):  # a still picture, a reduced header
        return None
    if reader.bits(1):
        reader.bits(64)  # ticks
        if reader.bits(1):
            reader.unsigned()
        if reader.bits(1):  # a model of the buffers puts more fields into the frame headers
            return None
    has_delay = reader.bits(1)
    for _ in range(reader.bits(5) + 1):
        reader.bits(12)
        if reader.bits(5) > 7:
            reader.bits(1)
        if has_delay and reader.bits(1):
            reader.bits(4)
    width_bits, height_bits = reader.bits(4) + 1, reader.bits(4) + 1
    reader.bits(width_bits + height_bits)
    frame_id_bits = reader.bits(4) + 2 + reader.bits(3) + 1 if reader.bits(1) else 0
    reader.bits(7)  # tools
    has_order_hint = reader.bits(1)
    if has_order_hint:
        reader.bits(2)
    screen_content = _SELECTED_BY_FRAME if reader.bits(1) else reader.bits(1)
    integer_motion = _SELECTED_BY_FRAME
    if screen_content and not reader.bits(1):
        integer_motion = reader.bits(1)
    order_hint_bits = reader.bits(3) + 1 if has_order_hint else 0
    return None if reader.is_exhausted else _Sequence(frame_id_bits, screen_content, integer_motion, order_hint_bits)


def _is_disposable(header: bytes, sequence: _Sequence) -> bool:
    """Whether a frame is shown at once and refreshes no reference."""
    reader = BitReader(header)
    if reader.bits(1):  # a frame that was decoded before is shown, which may refresh all references
        return False
    kind, is_shown = reader.bits(2), reader.bits(1)
    if not is_shown or kind in (_SWITCH, _KEY):
        return False
    is_resilient = reader.bits(1)
    reader.bits(1)  # probabilities are not adapted
    has_screen_content = reader.bits(1) if sequence.screen_content == _SELECTED_BY_FRAME else sequence.screen_content
    if has_screen_content and sequence.integer_motion == _SELECTED_BY_FRAME:
        reader.bits(1)
    reader.bits(sequence.frame_id_bits + 1 + sequence.order_hint_bits)  # and whether the frame has a size of its own
    if kind != _INTRA_ONLY and not is_resilient:
        reader.bits(3)
    return reader.bits(8) == 0 and not reader.is_exhausted
