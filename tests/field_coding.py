"""Writes H.264 whose frames are coded as two fields each, which no encoder at hand does.

Every third frame is not referred to. Each field has new macroblocks (coded as plain samples) beside skipped ones, so
that a missing field shows in the pictures after it.
"""

import io
from fractions import Fraction

import av
import numpy as np

_WIDTH_MBS, _FIELD_HEIGHT_MBS = 4, 2
_INTRA, _PREDICTED = 7, 5  # slice types


class _Bits:
    def __init__(self) -> None:
        self.text = ""

    def put(self, value: int, count: int = 1) -> "_Bits":
        self.text += format(value, f"0{count}b")
        return self

    def ue(self, *values: int) -> "_Bits":
        for value in values:
            code = format(value + 1, "b")
            self.text += "0" * (len(code) - 1) + code
        return self

    def samples(self, values: bytes) -> None:
        self.text += "0" * (-len(self.text) % 8) + "".join(format(value, "08b") for value in values)

    def unit(self, header: int) -> bytes:
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        found, zeros = bytearray(), 0
        for byte in (int(text[at : at + 8], 2) for at in range(0, len(text), 8)):
            if zeros >= 2 and byte <= 3:
                found.append(3)
                zeros = 0
            found.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([header]) + bytes(found)


def _parameter_sets() -> bytes:
    sps = _Bits().put(77, 8).put(0, 8).put(30, 8).ue(0, 0, 0, 4, 2).put(0).ue(_WIDTH_MBS - 1, _FIELD_HEIGHT_MBS - 1)
    sps.put(0).put(0).put(1).put(0).put(0)  # fields, no adaption by macroblock
    pps = _Bits().ue(0, 0).put(0, 2).ue(0, 0, 0).put(0, 3).ue(0, 0, 0).put(1).put(0, 2)
    return sps.unit(0x67) + pps.unit(0x68)


def _field(number: int, parity: int, frame_number: int, is_needed: bool, is_key: bool) -> bytes:
    rng, is_idr = np.random.default_rng(2 * number + parity), is_key and parity == 0
    bits = _Bits().ue(0, _INTRA if is_idr else _PREDICTED, 0).put(frame_number, 4).put(1).put(parity)
    if is_idr:
        bits.ue(0)
    bits.put(2 * number % 256 + parity, 8)
    if not is_idr:
        bits.put(0, 2)
    if is_needed:
        bits.put(0, 2 if is_idr else 1)
    bits.ue(0, 1)
    if is_idr:
        for _ in range(_WIDTH_MBS * _FIELD_HEIGHT_MBS):
            bits.ue(25).samples(rng.bytes(384))
    else:
        bits.ue(number % 4, 30).samples(rng.bytes(384))
        bits.ue(_WIDTH_MBS * _FIELD_HEIGHT_MBS - 1 - number % 4)
    return bits.unit((1 if is_needed else 0) << 5 | (5 if is_idr else 1))


def field_coded(count: int, container: str, gop: int = 20, *, is_split: bool) -> bytes:
    """A video of 25 frames a second and 64x64 pixels, in which each frame is two fields.

    Args:
        count: number of frames.
        container: FFmpeg's name of the format.
        gop: frames from one key frame to the next.
        is_split: the fields of a frame lie in two packets of the container.
    """
    units, frame_number = [], 0
    for number in range(count):
        place = number % gop
        is_needed = place % 3 != 2
        frame_number = 0 if place == 0 else frame_number
        poc = number % gop
        pair = [_field(poc, parity, frame_number % 16, is_needed, place == 0) for parity in (0, 1)]
        pair[0] = (_parameter_sets() if place == 0 else b"") + pair[0]
        units.append(pair)
        frame_number += is_needed
    output = io.BytesIO()
    raw = io.BytesIO(b"".join(b"".join(pair) for pair in units))
    with av.open(raw, format="h264") as source, av.open(output, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, pair in enumerate(units):
            for place, data in enumerate(pair if is_split else [b"".join(pair)]):
                packet = av.Packet(data)
                packet.pts = packet.dts = 2 * number + place
                packet.duration = 1 if is_split else 2
                packet.time_base, packet.is_keyframe = Fraction(1, 50), number % gop == 0 and place == 0
                packet.stream = stream
                target.mux(packet)
    return output.getvalue()
