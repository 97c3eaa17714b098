"""Decoding only the packets that the sampled frames need gives the frames and times of a plain decode.

The reference is a PyAV loop that decodes every packet. Every case also says how few packets must do for a frame a
second, so that nothing passes because all packets were decoded.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import av
import numpy as np
import pytest
from field_coding import field_coded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import encode_video, remuxed

from sttm.errors import VideoError
from sttm.video import segments
from sttm.video.coded_picture import Entry
from sttm.video.frame_buffer import FrameBuffer
from sttm.video.index import VideoIndex
from sttm.video.pyav import read_index
from sttm.video.selection import select

RATE, COUNT = 25, 110


def x264(params: str, **how: object) -> bytes:
    options = {"x264-params": f"mbtree=0:scenecut=0:{params}", "preset": "veryfast"}
    return encode_video(**{"count": COUNT, "rate": RATE, "options": options, **how})


def x265(params: str, **how: object) -> bytes:
    options = {"x265-params": f"log-level=none:pools=none:frame-threads=1:scenecut=0:{params}", "preset": "superfast"}
    return encode_video(**{"count": COUNT, "rate": RATE, "codec": "libx265", "options": options, **how})


def other(codec: str, container: str, gop: int, **options: str) -> bytes:
    return encode_video(count=COUNT, rate=RATE, codec=codec, container=container, gop=gop, options=options)


PYRAMID = "keyint=40:bframes=5:b-adapt=0:b-pyramid=normal"
OPEN = f"open-gop=1:{PYRAMID}"
HEVC_OPEN = "open-gop=1:keyint=20:bframes=4:b-adapt=0"
EDITED = range(-1000, 3400, 40)

# The greatest share of the packets that may be decoded for one frame a second.
CASES: dict[str, tuple[float, Callable[[], bytes]]] = {
    "H.264 B-pyramid": (0.35, lambda: x264(PYRAMID)),
    "H.264 open GOP": (0.4, lambda: x264(OPEN)),
    "H.264 open GOP in a transport stream": (0.4, lambda: x264(OPEN, container="mpegts")),
    "H.264 slices": (0.4, lambda: x264(f"slices=3:{PYRAMID}", size=(64, 96))),
    "H.264 interlaced": (0.45, lambda: x264("tff=1:keyint=40:bframes=3:b-adapt=0", size=(64, 64))),
    "H.264 intra refresh": (0.7, lambda: x264("intra-refresh=1:keyint=20:bframes=3:b-adapt=0")),
    "H.264 fragmented": (0.35, lambda: x264(PYRAMID, movflags="frag_keyframe+empty_moov")),
    "H.264 edit list": (0.45, lambda: x264(OPEN, ticks_ms=EDITED)),
    "H.264 in Matroska": (0.35, lambda: x264(PYRAMID, container="matroska")),
    "HEVC open GOP": (0.35, lambda: x265(HEVC_OPEN)),
    "HEVC edit list that hides an entry point": (0.45, lambda: x265(HEVC_OPEN, ticks_ms=range(-1560, 2840, 40))),
    "HEVC temporal layers": (0.7, lambda: x265("temporal-layers=3:keyint=64:bframes=7:b-adapt=0:open-gop=0")),
    "HEVC open GOP in a transport stream": (0.35, lambda: x265(HEVC_OPEN, container="mpegts")),
    "AV1": (0.7, lambda: av1(gop=60)),
    "VP9": (0.8, lambda: other("libvpx-vp9", "webm", 30, deadline="realtime", **{"cpu-used": "8"})),
    "MPEG-2 in a transport stream": (0.25, lambda: other("mpeg2video", "mpegts", 12, bf="2")),
}
MORE: dict[str, tuple[float, Callable[[], bytes]]] = {
    "H.264 strict pyramid": (0.35, lambda: x264("keyint=40:bframes=8:b-adapt=0:b-pyramid=strict")),
    "H.264 temporal direct": (0.4, lambda: x264("keyint=40:bframes=4:direct=temporal:b-adapt=0")),
    "H.264 weights": (0.5, lambda: x264("keyint=40:bframes=3:weightp=2:weightb=1:ref=4:b-adapt=0")),
    "H.264 interlaced in a transport stream": (
        0.45,
        lambda: x264("tff=1:keyint=40:bframes=3:b-adapt=0", size=(64, 64), container="mpegts"),
    ),
    "H.264 with buffering messages": (
        0.45,
        lambda: x264("nal-hrd=vbr:vbv-maxrate=400:vbv-bufsize=400:keyint=40:bframes=3:b-adapt=0", container="mpegts"),
    ),
    "H.264 10 bits": (0.45, lambda: x264("keyint=40:bframes=3:b-adapt=0", pixel_format="yuv420p10le")),
    "H.264 without B-frames": (0.75, lambda: x264("keyint=25:min-keyint=25:bframes=0")),
    "H.264 in FLV": (0.45, lambda: x264("keyint=40:bframes=3:b-adapt=0", container="flv")),
    "H.264 open GOP, edit list, Matroska": (0.5, lambda: remuxed(x264(OPEN, ticks_ms=EDITED), "matroska")),
    "HEVC pyramid": (0.4, lambda: x265("open-gop=0:keyint=40:bframes=8:b-pyramid=1:b-adapt=0")),
    "HEVC layers and open GOP": (0.6, lambda: x265(f"temporal-layers=3:{HEVC_OPEN}:bframes=7:keyint=32")),
    "HEVC fields": (0.45, lambda: x265("interlace=tff:keyint=30:bframes=3:b-adapt=0")),
    "HEVC 10 bits": (0.45, lambda: x265("keyint=30:bframes=3:b-adapt=0", pixel_format="yuv420p10le")),
    "HEVC in Matroska": (0.35, lambda: x265(HEVC_OPEN, container="matroska")),
    "AV1 with film grain": (0.75, lambda: av1(gop=64, film_grain=8)),
    "VP8 with hidden frames": (0.9, lambda: other("libvpx", "webm", 30, **{"auto-alt-ref": "1", "lag-in-frames": "9"})),
    "MPEG-2 interlaced": (0.25, lambda: other("mpeg2video", "mpegts", 12, bf="2", flags="+ildct+ilme")),
    "MPEG-2 in Matroska": (0.25, lambda: other("mpeg2video", "matroska", 12, bf="2")),
    "MPEG-4": (0.75, lambda: other("mpeg4", "mp4", 24, bf="2")),
    "WMV": (1.0, lambda: other("wmv2", "asf", 24)),
    "Motion JPEG": (0.05, lambda: encode_video(codec="mjpeg", container="avi", pixel_format="yuvj420p", count=COUNT)),
}


def av1(gop: int, film_grain: int = 0) -> bytes:
    return other("libsvtav1", "mp4", gop, preset="12", crf="45", **{"svtav1-params": f"film-grain={film_grain}:lp=1"})


def decoded_plainly(data: bytes, index: VideoIndex) -> dict[int, np.ndarray]:
    """All frames of a video by their time stamps."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams[index.parts[0].stream]
        return {frame.pts: frame.to_ndarray(format="rgb24") for frame in container.decode(stream)}


@pytest.fixture
def decoded_packets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by a position for each packet that is given to a decoder."""
    positions: list[int] = []
    packets_at = segments.PacketPass._at

    def noting(self: segments.PacketPass, wanted: np.ndarray) -> Iterator[object]:
        for position, packet in zip(wanted.tolist(), packets_at(self, wanted), strict=False):
            positions.append(position)
            yield packet

    monkeypatch.setattr(segments.PacketPass, "_at", noting)
    return positions


def decode(data: bytes, index: VideoIndex, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    buffer = FrameBuffer(len(wanted), 1 << 30, "clip")
    return segments.decode(io.BytesIO(data), index, wanted, 10**9, "clip", buffer)


def assert_like_a_plain_decode(data: bytes, max_share: float, decoded: list[int], trials: int) -> None:
    index = read_index(io.BytesIO(data), "clip")
    plain, rng = decoded_plainly(data, index), np.random.default_rng(0)
    for trial in range(trials):
        wanted = index.pts[::RATE] if trial == 0 else np.sort(rng.choice(index.pts, [40, 1, 3, 9][trial % 4]))
        wanted = np.unique(wanted)
        decoded.clear()
        pixels, seconds, warnings = decode(data, index, wanted)
        assert not warnings
        np.testing.assert_allclose(seconds, (wanted - index.pts[0]) * index.time_base)
        for stamp, got in zip(wanted.tolist(), pixels, strict=True):
            assert np.array_equal(got, plain[stamp]), f"trial {trial}: the frame at {stamp} differs"
        assert len(decoded) == len(set(decoded)), f"trial {trial}: packets were decoded twice"
        if trial == 0:
            assert len(decoded) <= max_share * len(index.packet_pts), f"{len(decoded)} of {len(index.packet_pts)}"


@pytest.mark.parametrize("kind", CASES)
def test_frames_and_times_are_those_of_a_plain_decode(kind: str, decoded_packets: list[int]) -> None:
    max_share, make = CASES[kind]
    assert_like_a_plain_decode(make(), max_share, decoded_packets, trials=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", {**CASES, **MORE})
def test_any_choice_of_frames_is_like_a_plain_decode(kind: str, decoded_packets: list[int]) -> None:
    max_share, make = {**CASES, **MORE}[kind]
    assert_like_a_plain_decode(make(), max_share, decoded_packets, trials=40)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
def test_both_fields_of_a_frame_are_decoded(container: str, is_split: bool, decoded_packets: list[int]) -> None:
    data = field_coded(60, container, is_split=is_split)
    index = read_index(io.BytesIO(data), "clip")
    assert len(index.pts) == 60, "a field is no frame"
    assert len(index.packet_pts) == (60 if not is_split and container != "mpegts" else 120)
    assert index.duration_s == pytest.approx(2.4, abs=1e-3)
    assert index.packet_is_disposable.mean() == pytest.approx(0.3, abs=0.01)
    assert_like_a_plain_decode(data, 0.5, decoded_packets, trials=6)


def test_an_entry_that_is_none_is_noticed(decoded_packets: list[int]) -> None:
    data = x264("keyint=100:bframes=0")
    index = read_index(io.BytesIO(data), "clip")
    entry = index.packet_entry.copy()
    entry[50] = Entry.RECOVERY
    lying = replace(index, packet_entry=entry)
    wanted = index.pts[60:62]
    assert select(lying, 0, wanted)[0].segments[0].packets[0] == 50
    pixels, _, _ = decode(data, lying, wanted)
    plain = decoded_plainly(data, index)
    assert all(np.array_equal(got, plain[stamp]) for stamp, got in zip(wanted.tolist(), pixels, strict=True))
    assert decoded_packets[-1] > len(index.packet_pts) - 20, "the packets were decoded plainly in the end"


def damaged_in(data: bytes, position: int) -> bytes:
    """A file whose packet at a position in file order has zeros in its second half."""
    with av.open(io.BytesIO(data)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][position]
        start, stop = packet.pos + packet.size // 2, packet.pos + packet.size
    return data[:start] + bytes(stop - start) + data[stop:]


def test_damage_that_no_sampled_frame_needs_does_no_harm() -> None:
    data = x264(PYRAMID)
    index = read_index(io.BytesIO(data), "clip")
    wanted = index.pts[::RATE]
    needed = {p for group in select(index, 0, wanted) for s in group.segments for p in s.packets.tolist()}
    plain = decoded_plainly(data, index)
    for position in [p for p in range(COUNT) if p not in needed][:40:8]:
        pixels, _, warnings = decode(damaged_in(data, position), index, wanted)
        assert not warnings
        assert all(np.array_equal(got, plain[stamp]) for stamp, got in zip(wanted.tolist(), pixels, strict=True))


def test_damage_that_a_sampled_frame_needs_is_counted_as_a_plain_decode_counts_it() -> None:
    data = x264(PYRAMID, size=(160, 96))
    index = read_index(io.BytesIO(data), "clip")
    wanted = index.pts[:: RATE // 2]
    damaged = damaged_in(data, position=1)
    unselected = replace(index, is_selectable=False)
    pixels, seconds, warnings = decode(damaged, index, wanted)
    plain = decode(damaged, unselected, wanted)
    assert any("damaged data" in warning for warning in warnings)
    assert warnings == plain[2]
    assert np.array_equal(pixels, plain[0])
    assert np.array_equal(seconds, plain[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in {**CASES, **MORE} if "transport stream" in kind])
@given(st.floats(0.05, 0.6), st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_recording_that_begins_anywhere_is_like_a_plain_decode(
    kind: str, kept_from: float, data: st.DataObject
) -> None:
    if kind not in _ENCODED:
        _ENCODED[kind] = {**CASES, **MORE}[kind][1]()
    whole = _ENCODED[kind]
    cut = whole[int(len(whole) * kept_from / 188) * 188 :]
    index = read_index(io.BytesIO(cut), "clip")
    wanted = np.array(sorted(data.draw(st.sets(st.sampled_from(index.pts.tolist()), min_size=1))))
    found = []
    for one in (index, replace(index, is_selectable=False)):
        try:
            pixels, seconds, _ = decode(cut, one, wanted)
            found.append((pixels.tobytes(), seconds.tolist()))
        except VideoError as error:
            found.append((error.code, []))
    assert found[0] == found[1]


_ENCODED: dict[str, bytes] = {}
