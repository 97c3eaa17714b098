"""What the headers of MPEG-1 and MPEG-2 packets say about their pictures (ISO/IEC 13818-2, 6.2)."""

import re

from sttm.video.coded_picture import DISPOSABLE, NEEDED, CodedPicture, Entry

_HEADER = re.compile(rb"\x00\x00\x01([\x00\xb3\xb7\xb8])")
_PICTURE, _SEQUENCE = 0, 0xB3
_INTRA, _BIDIRECTIONAL = 1, 3
_OPEN_ENTRY = CodedPicture(Entry.OPEN)


class Mpeg2Pictures:
    """Reads the packets of an MPEG-1 or MPEG-2 stream. A B-picture is never referred to.

    An I-picture behind a sequence header is an entry, because no picture refers to pictures before the last I-picture,
    except for the B-pictures that are shown before it.
    """

    def read(self, packet: memoryview, is_key: bool) -> CodedPicture:
        """What the headers of a packet say.

        Args:
            packet: the bytes of the packet.
            is_key: whether the container marks the packet as a key; others are no entries.
        """
        kinds, headers = [], set()
        for found in _HEADER.finditer(packet):
            code, at = packet[found.end() - 1], found.end()
            headers.add(code)
            if code == _PICTURE:
                kinds.append(packet[at + 1] >> 3 & 7 if at + 1 < len(packet) else 0)
                if kinds[-1] != _BIDIRECTIONAL:
                    break
        if is_key and kinds and kinds[0] == _INTRA and _SEQUENCE in headers:
            return _OPEN_ENTRY
        return DISPOSABLE if headers == {_PICTURE} and set(kinds) == {_BIDIRECTIONAL} else NEEDED
