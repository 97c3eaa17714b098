"""What the headers of HEVC packets say about their pictures (ISO/IEC 23008-2, 7.4.2.2)."""

from sttm.video.coded_picture import NEEDED, CodedPicture, Entry
from sttm.video.nal_units import ORIENTATION_MESSAGE, ParameterSets, messages, nal_units

_LAST_SUB_LAYER = 14  # up to this kind, even kinds are sub-layer non-reference pictures
_RANDOM_ACCESS, _IDR = range(16, 22), (19, 20)
_LAST_PICTURE = 31
_VPS, _SPS, _PPS, _PREFIX_SEI = 32, 33, 34, 39
_HARMLESS = (35, 38, 40)  # access unit delimiter, filler, messages about the picture before them
_RECORD_BYTES = 23


class HevcPictures:
    """Reads the packets of an HEVC stream, in file order.

    Args:
        extradata: the header of the stream: a decoder configuration record, or NAL units with start codes.
    """

    def __init__(self, extradata: bytes) -> None:
        is_record = len(extradata) >= _RECORD_BYTES and any(extradata[:3]) and extradata[:4] != b"\0\0\0\1"
        is_record &= extradata[:3] != b"\0\0\1"
        self._length_bytes = (extradata[21] & 3) + 1 if is_record else 0
        self._sets = ParameterSets({_SPS, _PPS})
        self._is_first = True
        units: dict[int, list[bytes]] = {}
        for unit in _record_units(extradata) if is_record else nal_units(memoryview(extradata), 0):
            if len(unit) > 1 and _VPS <= unit[0] >> 1 & 63 <= _PPS:
                units.setdefault(unit[0] >> 1 & 63, []).append(bytes(unit).rstrip(b"\0"))
        self._sets.suffices(units, is_first=True, is_entry=False)

    def read(self, packet: memoryview, is_key: bool) -> CodedPicture:
        """What the headers of a packet say.

        Args:
            packet: the bytes of the packet.
            is_key: not needed, because the kinds of the NAL units name the entries.
        """
        entry, is_disposable, layer, has_picture = Entry.NONE, True, 0, False
        sets: dict[int, list[bytes]] = {}
        for unit in nal_units(packet, self._length_bytes):
            if len(unit) < 2:
                is_disposable = False
                continue
            kind = unit[0] >> 1 & 63
            if kind <= _LAST_PICTURE:
                if not has_picture and kind in _RANDOM_ACCESS:
                    entry = Entry.CLOSED if kind in _IDR else Entry.OPEN
                has_picture = True
                layer = max(layer, (unit[1] & 7) - 1)
                is_disposable &= kind <= _LAST_SUB_LAYER and kind % 2 == 0
                if not is_disposable:
                    break
            elif _VPS <= kind <= _PPS:
                sets.setdefault(kind, []).append(bytes(unit).rstrip(b"\0"))
                is_disposable = False
            elif kind == _PREFIX_SEI:
                is_disposable = is_disposable and ORIENTATION_MESSAGE not in messages(unit, 2)
            else:
                is_disposable &= kind in _HARMLESS
        if (sets or entry) and not self._sets.suffices(sets, self._is_first, bool(entry)):
            entry = Entry.NONE
        self._is_first = False
        return CodedPicture(entry, is_disposable, layer) if has_picture else NEEDED


def _record_units(extradata: bytes) -> list[memoryview]:
    """The parameter sets of a decoder configuration record (ISO/IEC 14496-15, 8.3.3)."""
    data, at = memoryview(extradata), _RECORD_BYTES
    found: list[memoryview] = []
    for _ in range(data[_RECORD_BYTES - 1]):
        count = int.from_bytes(data[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            if at >= len(data):
                return found
            size = int.from_bytes(data[at : at + 2], "big")
            found.append(data[at + 2 : at + 2 + size])
            at += 2 + size
    return found
