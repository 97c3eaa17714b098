"""NAL units, of which the packets of H.264 and HEVC consist, and the parameter sets among them."""

import re
from collections.abc import Iterator

_START_CODE = re.compile(rb"\x00\x00\x01")
_EMULATION_PREVENTION, _PLAIN = b"\0\0\3", b"\0\0"
_MAX_PAYLOAD_TYPES = 64
ORIENTATION_MESSAGE, RECOVERY_MESSAGE = 47, 6  # payload types of supplemental enhancement information


def nal_units(packet: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """The NAL units of a packet. Where the packet is damaged, an empty one is given and nothing after it.

    Args:
        packet: the bytes of the packet.
        length_bytes: bytes of the number before each unit that tells its length, as in MP4; 0 if the units are
            separated by start codes, as in broadcasts.
    """
    at, end = 0, len(packet)
    if length_bytes:
        while at < end:
            start = at + length_bytes
            at = start + int.from_bytes(packet[at:start], "big")
            if at > end:
                yield packet[:0]
                return
            yield packet[start:at]
        return
    before = -1
    for code in _START_CODE.finditer(packet):
        if before >= 0:
            yield packet[before : code.start()]
        before = code.end()
    yield packet[before:] if before >= 0 else packet[:0]


def payload(unit: memoryview, header_bytes: int, max_bytes: int) -> bytes:
    """The first bytes of what a NAL unit carries, without its header and without emulation prevention."""
    return bytes(unit[header_bytes : header_bytes + max_bytes]).replace(_EMULATION_PREVENTION, _PLAIN)


def messages(unit: memoryview, header_bytes: int) -> dict[int, bytes]:
    """The supplemental enhancement information of a NAL unit: payload by type, the last one of each type."""
    data, at = payload(unit, header_bytes, len(unit)), 0
    found: dict[int, bytes] = {}
    while at + 1 < len(data) and len(found) < _MAX_PAYLOAD_TYPES:
        numbers = []
        for _ in range(2):  # type and size, each a sum of bytes of which all but the last are 255
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            numbers.append(number + (data[at] if at < len(data) else 0))
            at += 1
        found[numbers[0]] = data[at : at + numbers[1]]
        at += numbers[1]
    return found


class ParameterSets:
    """Tells whether the entries of a stream bring the parameter sets along that are in force there.

    A decoder that starts at an entry has seen nothing of the packets that were left out. So the sets must be those of
    the stream's header, or lie in the entry's own packet. If a set changes elsewhere, no later packet is an entry.

    Args:
        kinds: kinds of NAL units that an entry must have if sets change, such as those of SPS and PPS.
    """

    def __init__(self, kinds: set[int]) -> None:
        self._kinds = kinds
        self._known: set[bytes] = set()
        self._changes = 0
        self._is_lost = False

    def suffices(self, units: dict[int, list[bytes]], is_first: bool, is_entry: bool) -> bool:
        """Take the sets of a packet, by kind; whether decoding can start there as far as they are concerned."""
        new = {unit for found in units.values() for unit in found} - self._known
        if new and len(self._known) < _MAX_SETS:
            self._known |= new
        if new and not is_first:
            self._changes += 1
            self._is_lost |= not is_entry
        return is_entry and not self._is_lost and (not self._changes or self._kinds <= units.keys())


_MAX_SETS = 1000
