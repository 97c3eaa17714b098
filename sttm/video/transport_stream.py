"""Facts about an MPEG transport stream that the headers of its packets show."""

import numpy as np
from numpy.typing import NDArray

_SYNC = 0x47
_STRIDES = (188, 192, 204)  # plain, with time codes (M2TS), with parity
_MAX_PACKETS = 200_000  # enough to see whether a stream is scrambled
_SCRAMBLED_RATIO = 0.05
_PROGRAMME_TABLE = 2


def video_pids(data: memoryview) -> set[int]:
    """The PIDs on which the data has the beginning of a video packet (a PES packet of a video stream)."""
    packets = _packets(data)
    has_start = (packets[:, 0] == _SYNC) & (packets[:, 1] & 0x40 != 0) & (packets[:, 3] & 0x10 != 0)
    starts = packets[has_start]
    at = np.where(starts[:, 3] & 0x20 != 0, 5 + starts[:, 4].astype(int), 4)
    is_short = at < 184
    starts, at = starts[is_short], at[is_short]
    code = starts[np.arange(len(starts))[:, None], at[:, None] + np.arange(4)]
    is_video = (code[:, :3] == (0, 0, 1)).all(1) & (code[:, 3] & 0xF0 == 0xE0)
    return set(_pids(starts[is_video]).tolist())


def changes_codec(data: memoryview, pid: int) -> bool:
    """Whether a table of a programme (PMT) gives a PID another codec than a table before.

    Args:
        data: the bytes of the file.
        pid: the PID whose codec may change.
    """
    packets = _packets(data)
    has_table = (packets[:, 0] == _SYNC) & (packets[:, 1] & 0x40 != 0) & (packets[:, 3] & 0x30 == 0x10)
    tables = packets[has_table & (packets[:, 4] == 0) & (packets[:, 5] == _PROGRAMME_TABLE)][:, 5:]
    is_new = np.append(True, (tables[1:] != tables[:-1]).any(1))[: len(tables)]
    kinds = {_stream_type(bytes(table), pid) for table in np.unique(tables[is_new], axis=0)}
    return len(kinds - {None}) > 1


def _stream_type(table: bytes, pid: int) -> int | None:
    """What a table of a programme says about the codec of a PID (ISO/IEC 13818-1, 2.4.4.8); None if it has none."""
    end = min(len(table), 3 + (int.from_bytes(table[1:3], "big") & 0xFFF) - 4)
    at = 12 + (int.from_bytes(table[10:12], "big") & 0xFFF)
    while at + 5 <= end:
        if int.from_bytes(table[at + 1 : at + 3], "big") & 0x1FFF == pid:
            return table[at]
        at += 5 + (int.from_bytes(table[at + 3 : at + 5], "big") & 0xFFF)
    return None


def is_scrambled(data: memoryview, pid: int | None = None) -> bool:
    """Whether packets say that they are scrambled: those of one stream, or of any stream if `pid` is None."""
    packets = _packets(data)
    packets = packets[:: 1 + len(packets) // _MAX_PACKETS]
    if pid is not None:
        packets = packets[_pids(packets) == pid]
    return len(packets) > 0 and float((packets[:, 3] & 0xC0 != 0).mean()) > _SCRAMBLED_RATIO


def _pids(packets: NDArray[np.uint8]) -> NDArray[np.int64]:
    return (packets[:, 1].astype(np.int64) & 0x1F) << 8 | packets[:, 2]


def _packets(data: memoryview) -> NDArray[np.uint8]:
    """uint8 [N, 188], a view of the packets from the first sync byte on that others follow; N is 0 if there is none."""
    head = np.frombuffer(data[:4096], np.uint8)
    for stride in _STRIDES:
        for at in np.flatnonzero(head[:stride] == _SYNC):
            if len(following := head[at::stride]) > 1 and (following == _SYNC).all():
                whole = np.frombuffer(data, np.uint8)[at:]
                count = (len(whole) - 188) // stride + 1
                return np.lib.stride_tricks.as_strided(whole, (count, 188), (stride, 1), writeable=False)
    return np.empty((0, 188), np.uint8)
