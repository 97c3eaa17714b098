"""What the headers of a packet say about its picture: can decoding start there, and does another picture need it."""

from enum import IntEnum
from typing import NamedTuple, Protocol


class Entry(IntEnum):
    """Whether a decoder can start at a picture.

    Attributes:
        NONE: it cannot.
        RECOVERY: by the word of the encoder, all pictures shown from this one on come out exactly.
        OPEN: the standard demands that all pictures shown from this one on come out exactly.
        CLOSED: all pictures that follow in the file come out exactly.
        START: a decoder must start anew, because a new stream, a new header or another clock begins.
    """

    NONE = 0
    RECOVERY = 1
    OPEN = 2
    CLOSED = 3
    START = 4


class CodedPicture(NamedTuple):
    """What the headers of one packet say.

    Attributes:
        entry: whether decoding can start here.
        is_disposable: no picture of its own temporal layer or of a lower one refers to it, and the packet has nothing
            else that later packets need.
        layer: number of the temporal layer; pictures of a higher layer may refer to a picture that is disposable.
        is_second_field: the packet has the second field of a frame, whose first field is in the packet before.
    """

    entry: Entry = Entry.NONE
    is_disposable: bool = False
    layer: int = 0
    is_second_field: bool = False


class PictureReader(Protocol):
    """Reads the headers of the packets of one stream, in file order."""

    def read(self, packet: memoryview, is_key: bool) -> CodedPicture:
        """What the headers of a packet say. For a damaged packet no error is raised, and the answer may be wrong.

        Args:
            packet: the bytes of the packet.
            is_key: whether the container marks the packet as a key.
        """


class UnreadPictures:
    """Stands for a codec whose headers are not read: every picture is needed.

    Args:
        keys_are_entries: whether decoding can start at the packets that the container marks as keys.
    """

    def __init__(self, keys_are_entries: bool) -> None:
        self._keys_are_entries = keys_are_entries

    def read(self, packet: memoryview, is_key: bool) -> CodedPicture:
        """What the container says about a packet.

        Args:
            packet: the bytes of the packet, which are not read.
            is_key: whether the container marks the packet as a key.
        """
        return CLOSED_ENTRY if is_key and self._keys_are_entries else NEEDED


NEEDED = CodedPicture()
DISPOSABLE = CodedPicture(is_disposable=True)
CLOSED_ENTRY = CodedPicture(Entry.CLOSED)
START = CodedPicture(Entry.START)
