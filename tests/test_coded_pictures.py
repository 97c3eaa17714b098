"""The headers of coded pictures are read by the letter of their standards, and damaged ones raise nothing."""

import io

import av
import pytest
from field_coding import field_coded
from hypothesis import given, settings
from hypothesis import strategies as st
from media import encode_video

from sttm.video.bits import BitReader
from sttm.video.coded_picture import CodedPicture, Entry
from sttm.video.nal_units import ParameterSets, messages, nal_units
from sttm.video.picture_readers import picture_reader

X264 = "bframes=2:b-adapt=0:b-pyramid=none:scenecut=0:keyint=12:min-keyint=12"
STREAMS = {
    "h264": {"options": {"x264-params": X264}},
    "h264 with start codes": {"options": {"x264-params": X264}, "container": "mpegts"},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=2:b-adapt=0:keyint=12"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mpeg2video": {"codec": "mpeg2video", "container": "mpegts", "rate": 25, "options": {"bf": "2"}},
}
_READ: dict[str, tuple[str, bytes, list[bytes]]] = {}


def packets_of(kind: str) -> tuple[str, bytes, list[bytes]]:
    """Codec, header and packets of a stream."""
    if kind not in _READ:
        data = field_coded(20, "mpegts", is_split=False) if kind == "fields" else encode_video(**STREAMS[kind])
        with av.open(io.BytesIO(data)) as container:
            packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
            context = container.streams.video[0].codec_context
            _READ[kind] = context.name, bytes(context.extradata or b""), packets
    return _READ[kind]


def read(kind: str) -> list[CodedPicture]:
    codec, header, packets = packets_of(kind)
    reader = picture_reader(codec, header, keys_are_entries=True)
    return [reader.read(memoryview(packet), number == 0) for number, packet in enumerate(packets)]


@pytest.mark.parametrize("kind", ["h264", "h264 with start codes"])
def test_h264_names_its_idr_pictures_and_the_b_frames_that_nothing_refers_to(kind: str) -> None:
    pictures = read(kind)
    assert [p.entry for p in pictures][:13] == [Entry.CLOSED, *[Entry.NONE] * 11, Entry.CLOSED]
    assert "".join("b" if p.is_disposable else "r" for p in pictures)[:10] == "rrbbrbbrbb"


def test_fields_are_paired() -> None:
    pictures = read("fields")
    assert [p.is_second_field for p in pictures] == [False, True] * 20
    assert [p.is_disposable for p in pictures][:8] == [False] * 4 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("kind", [*STREAMS, "fields"])
@settings(deadline=None, max_examples=40)  # the first example encodes a video
@given(st.data())
def test_damaged_packets_raise_nothing(kind: str, data: st.DataObject) -> None:
    codec, header, packets = packets_of(kind)
    damaged = bytearray(data.draw(st.sampled_from([header, *packets[:12]])))
    places = st.integers(0, max(0, len(damaged) - 1))
    for at in data.draw(st.lists(places, max_size=8)) if damaged else ():
        damaged[at] = data.draw(st.integers(0, 255))
    piece = bytes(damaged)[: data.draw(st.integers(0, len(damaged)))]
    reader = picture_reader(codec, data.draw(st.sampled_from([header, piece, b""])), keys_are_entries=True)
    for packet in (piece, packets[0], piece, packets[1]):
        reader.read(memoryview(packet), is_key=data.draw(st.booleans()))


@given(st.sampled_from(["h264", "hevc", "libdav1d", "mpeg2video", "other"]), st.binary(max_size=200), st.binary())
def test_any_bytes_raise_nothing(codec: str, header: bytes, packet: bytes) -> None:
    for start in (b"", b"\1", b"\0\0\1", b"\0\0\0\1\x67", b"\0\0\1\x09"):
        reader = picture_reader(codec, start + header, keys_are_entries=True)
        reader.read(memoryview(start + packet), is_key=True)


@given(st.lists(st.tuples(st.sampled_from(["bits", "unsigned", "signed"]), st.integers(0, 2000))))
def test_bits_are_read_back(numbers: list[tuple[str, int]]) -> None:
    text = ""
    for kind, number in numbers:
        value = number - 1000 if kind == "signed" else number
        code = 2 * value - 1 if kind == "signed" and value > 0 else -2 * value if kind == "signed" else value
        golomb = format(code + 1, "b")
        text += format(value, "011b") if kind == "bits" else "0" * (len(golomb) - 1) + golomb
    text += "0" * (-len(text) % 8)
    reader = BitReader(bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8)))
    for kind, number in numbers:
        got = reader.bits(11) if kind == "bits" else getattr(reader, kind)()
        assert got == (number - 1000 if kind == "signed" else number)
    assert not reader.is_exhausted
    assert [reader.bits(64), reader.unsigned()] == [0, 0]
    assert reader.is_exhausted


def test_nal_units_of_both_forms() -> None:
    prefixed, coded = b"\0\0\0\2ab\0\0\0\1c", b"\0\0\0\1ab\0\0\1c"
    assert [bytes(u).rstrip(b"\0") for u in nal_units(memoryview(prefixed), 4)] == [b"ab", b"c"]
    assert [bytes(u).rstrip(b"\0") for u in nal_units(memoryview(coded), 0)] == [b"ab", b"c"]
    assert [bytes(u) for u in nal_units(memoryview(prefixed[:-1]), 4)] == [b"ab", b""], "the end is missing"
    assert messages(memoryview(b"\6\6\1\xc4\xff\5\2ab\x80"), 1) == {6: b"\xc4", 260: b"ab"}


def test_an_entry_must_bring_the_parameter_sets_that_are_in_force() -> None:
    old, new = {7: [b"sps"], 8: [b"pps"]}, {7: [b"other"], 8: [b"pps"]}

    def entries(*packets: tuple[dict[int, list[bytes]], bool]) -> list[bool]:
        sets = ParameterSets({7, 8})
        return [sets.suffices(units, not number, is_entry) for number, (units, is_entry) in enumerate(packets)]

    assert entries((old, True), ({}, True), (old, True)) == [True] * 3
    assert entries((old, True), (new, True), ({}, True), (old, True)) == [True, True, False, True]
    assert entries((old, True), (new, False), ({}, True), (old, True)) == [True, False, False, False]
    assert entries((old, True), (old, False), ({}, True)) == [True, False, True], "a repetition changes nothing"
