"""What the headers of H.264 packets say about their pictures (ISO/IEC 14496-10, 7.3 and annex D)."""

from typing import NamedTuple

from sttm.video.bits import BitReader
from sttm.video.coded_picture import CLOSED_ENTRY, DISPOSABLE, NEEDED, CodedPicture, Entry
from sttm.video.nal_units import ORIENTATION_MESSAGE, RECOVERY_MESSAGE, ParameterSets, messages, nal_units, payload

_SLICE, _IDR_SLICE, _SEI, _SPS, _PPS = 1, 5, 6, 7, 8
_HARMLESS = (9, 12)  # access unit delimiter and filler; what is not known may be needed
_SETS = (_SPS, _PPS, 13, 15)
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_INTRA = (2, 4)  # slice types I and SI, modulo 5
_HEADER_BYTES, _MAX_SPS_BYTES = 24, 1024


class _Format(NamedTuple):
    """What of a sequence parameter set is needed to tell frames from fields.

    Attributes:
        has_fields: whether pictures may be single fields.
        frame_number_bits: bits of `frame_num` in a slice header.
        plane_bits: bits of `colour_plane_id` in a slice header: 2, or 0 if slice headers have none.
    """

    has_fields: bool
    frame_number_bits: int
    plane_bits: int


class H264Pictures:
    """Reads the packets of an H.264 stream, in file order.

    Args:
        extradata: the header of the stream: a decoder configuration record, or NAL units with start codes.
    """

    def __init__(self, extradata: bytes) -> None:
        is_record = len(extradata) > 6 and extradata[0] == 1
        self._length_bytes = (extradata[4] & 3) + 1 if is_record else 0
        self._formats: set[_Format] = set()
        self._sets = ParameterSets({_SPS, _PPS})
        self._is_first = True
        self._first_field: tuple[int, int] | None = None  # frame number and parity of a field that lacks the other
        header = _record_units(extradata) if is_record else nal_units(memoryview(extradata), 0)
        units: dict[int, list[bytes]] = {}
        for unit in header:
            if unit and unit[0] & 31 in _SETS:
                self._note_set(unit, units)
        self._sets.suffices(units, is_first=True, is_entry=False)

    def read(self, packet: memoryview, is_key: bool) -> CodedPicture:
        """What the headers of a packet say.

        Args:
            packet: the bytes of the packet.
            is_key: whether the container marks the packet as a key; others are not searched for recovery points.
        """
        entry, is_disposable, is_recovery = Entry.NONE, True, False
        sets: dict[int, list[bytes]] = {}
        slices: list[memoryview] = []
        for unit in nal_units(packet, self._length_bytes):
            header = unit[0] if unit else 0
            kind = header & 31
            if kind in (_SLICE, _IDR_SLICE):
                slices.append(unit)
                is_disposable &= not header & 0xE0
                if not is_disposable and not is_key and not self._has_fields:
                    break
            elif kind == _SEI:
                found = messages(unit, 1) if is_key or is_disposable else {}
                is_recovery |= RECOVERY_MESSAGE in found and _is_exact(found[RECOVERY_MESSAGE])
                is_disposable &= ORIENTATION_MESSAGE not in found
            elif kind in _SETS:
                self._note_set(unit, sets)
                is_disposable = False
            else:
                is_disposable &= kind in _HARMLESS
        if slices and slices[0][0] & 31 == _IDR_SLICE:
            entry = Entry.CLOSED
        elif is_recovery and slices and all(_slice_type(unit) in _INTRA for unit in slices):
            entry = Entry.RECOVERY
        if (sets or entry) and not self._sets.suffices(sets, self._is_first, bool(entry)):
            entry = Entry.NONE
        self._is_first = False
        if self._has_fields and slices:
            return CodedPicture(entry, is_disposable, 0, self._is_second_field(slices))
        if not entry:
            return DISPOSABLE if is_disposable and slices else NEEDED
        return CLOSED_ENTRY if entry == Entry.CLOSED else CodedPicture(entry)

    @property
    def _has_fields(self) -> bool:
        return any(form.has_fields for form in self._formats)

    def _note_set(self, unit: memoryview, units: dict[int, list[bytes]]) -> None:
        content = bytes(unit).rstrip(b"\0")
        units.setdefault(unit[0] & 31, []).append(content)
        if unit[0] & 31 == _SPS and not self._sets.is_known(content):
            self._formats.add(_read_format(payload(unit, 1, _MAX_SPS_BYTES)))

    def _is_second_field(self, slices: list[memoryview]) -> bool:
        """Whether the slices are one field, whose frame has its other field in the packet before."""
        form = next(iter(self._formats))
        if len(self._formats) > 1:
            self._first_field = None
            return False
        fields = {_field(unit, form) for unit in slices}
        lone = fields.pop() if len(fields) == 1 else None
        before, self._first_field = self._first_field, None
        if lone is None:
            return False
        if before is not None and before[0] == lone[0] and before[1] != lone[1]:
            return True
        self._first_field = lone
        return False


def _record_units(extradata: bytes) -> list[memoryview]:
    """The parameter sets of a decoder configuration record (ISO/IEC 14496-15, 5.3.3)."""
    found, at, data = [], 5, memoryview(extradata)
    for mask in (31, 255):
        count = data[at] & mask if at < len(data) else 0
        at += 1
        for _ in range(count):
            size = int.from_bytes(data[at : at + 2], "big")
            found.append(data[at + 2 : at + 2 + size])
            at += 2 + size
    return found


def _read_format(sps: bytes) -> _Format:
    reader = BitReader(sps)
    profile = reader.bits(8)
    reader.bits(16)  # constraint flags, level
    reader.unsigned()  # id
    plane_bits = 0
    if profile in _HIGH_PROFILES:
        chroma = reader.unsigned()
        plane_bits = 2 * reader.bits(1) if chroma == 3 else 0
        reader.unsigned(), reader.unsigned(), reader.bits(1)  # bit depths, transform bypass
        if reader.bits(1):
            for number in range(8 if chroma != 3 else 12):
                _skip_scaling_list(reader, 16 if number < 6 else 64)
    frame_number_bits = 4 + reader.unsigned()
    order = reader.unsigned()
    if order == 0:
        reader.unsigned()
    elif order == 1:
        reader.bits(1), reader.signed(), reader.signed()
        for _ in range(min(255, reader.unsigned())):
            reader.signed()
    reader.unsigned(), reader.bits(1), reader.unsigned(), reader.unsigned()  # references, gaps, width, height
    return _Format(not reader.bits(1), min(16, frame_number_bits), plane_bits)


def _skip_scaling_list(reader: BitReader, size: int) -> None:
    last = following = 8
    for _ in range(size if reader.bits(1) else 0):
        if following:
            following = (last + reader.signed()) % 256
        last = following or last


def _slice_type(unit: memoryview) -> int:
    reader = BitReader(payload(unit, 1, _HEADER_BYTES))
    reader.unsigned()  # first macroblock
    return reader.unsigned() % 5


def _field(unit: memoryview, form: _Format) -> tuple[int, int] | None:
    """Frame number and parity of a slice of a field; None for a slice of a frame."""
    reader = BitReader(payload(unit, 1, _HEADER_BYTES))
    reader.unsigned(), reader.unsigned(), reader.unsigned()  # first macroblock, slice type, picture parameter set
    reader.bits(form.plane_bits)
    number = reader.bits(form.frame_number_bits)
    return (number, reader.bits(1)) if reader.bits(1) else None


def _is_exact(message: bytes) -> bool:
    """Whether a recovery point promises that its own picture and all that are shown later come out exactly."""
    reader = BitReader(message)
    return reader.unsigned() == 0 and reader.bits(1) == 1 and not reader.is_exhausted
