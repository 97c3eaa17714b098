"""What archives hold: recordings that were joined, stopped, cut, encrypted or damaged give right frames or say so.

Frame number i of a test video is brighter than frame i - 1, so that a decoded frame tells its number.
"""

import io
import struct

import av
import numpy as np
import pytest
from media import CLIPS, TROUBLE, encode_video, flipped

from sttm.errors import VideoError
from sttm.video.decode import VideoConfig, read_video


def read(tmp_path, data: bytes, name: str = "clip.bin", **settings):
    (tmp_path / name).write_bytes(data)
    return read_video(str(tmp_path / name), VideoConfig(**settings))


def numbers(frames) -> list[int]:
    """The number of each frame, from the grey at the bottom right."""
    return [round((float(p[-8:, -6:].mean()) - 30) / 4) for p in frames.pixels]


def code_of(tmp_path, data: bytes, **settings) -> str:
    with pytest.raises(VideoError) as caught:
        read(tmp_path, data, **settings)
    return caught.value.code


# Joined recordings


@pytest.mark.parametrize("name", ["reset.ts", "pidchange.ts", "programchange.ts"])
def test_a_recording_that_goes_on_anew_is_read_to_its_end(name):
    frames = read_video(str(TROUBLE / name), VideoConfig(fps=10))
    np.testing.assert_allclose(frames.seconds, np.arange(60) / 10, atol=1e-6)
    assert frames.duration_s == pytest.approx(6)
    assert any("anew" in w for w in frames.warnings)


PART = {"container": "mpegts", "count": 20, "gop": 10}
SECOND_PARTS = {
    "same clock again": {},
    "another picture size": {"size": (128, 96)},
    "another codec": {"codec": "mpeg2video", "rate": 25},
    "clock far ahead": {"ticks_ms": range(10**8, 10**8 + 2000, 100)},
    "without B-frames": {"options": {"bf": "0"}},
}


@pytest.mark.parametrize("kind", SECOND_PARTS)
def test_joined_transport_streams_give_all_frames(tmp_path, kind):
    second = encode_video(**{**PART, **SECOND_PARTS[kind]})
    if "codec" in SECOND_PARTS[kind]:
        second = on_pid(second, 0x100, 0x200, programme=2)
    frames = read(tmp_path, encode_video(**PART) + second, fps=50)
    assert len(frames.pixels) == 40
    assert (np.diff(frames.seconds) < 0.3).all()
    if not {"codec", "size"} & SECOND_PARTS[kind].keys():
        assert numbers(frames)[:12] == numbers(frames)[20:32] == list(range(12))


def on_pid(stream: bytes, old: int, new: int, programme: int) -> bytes:
    """A transport stream with its video on another PID and in another programme, which another PMT announces."""
    output = bytearray(stream)
    for at in range(0, len(stream), 188):
        pid = (stream[at + 1] & 0x1F) << 8 | stream[at + 2]
        if pid == old:
            output[at + 1] = stream[at + 1] & 0xE0 | new >> 8
            output[at + 2] = new & 0xFF
        elif pid == 0:
            section = at + 5
            output[section + 8 : section + 12] = struct.pack(">HH", programme, 0xE000 | 0x1100)
            _seal(output, section)
        elif pid == 0x1000:
            output[at + 1], output[at + 2] = stream[at + 1] & 0xE0 | 0x11, 0
            section = at + 5
            output[section + 3 : section + 5] = struct.pack(">H", programme)
            output[section + 8 : section + 10] = struct.pack(">H", 0xE000 | new)
            length = stream[section + 10 : section + 12]
            es = section + 12 + (int.from_bytes(length, "big") & 0xFFF)
            output[es + 1 : es + 3] = struct.pack(">H", 0xE000 | new)
            _seal(output, section)
    return bytes(output)


def _seal(data: bytearray, section: int) -> None:
    end = section + 3 + (int.from_bytes(data[section + 1 : section + 3], "big") & 0xFFF)
    crc = 0xFFFFFFFF
    for byte in data[section : end - 4]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 1 << 31 else crc << 1) & 0xFFFFFFFF
    data[end - 4 : end] = crc.to_bytes(4, "big")


def test_a_change_of_programme_gives_the_frames_of_both(tmp_path):
    first, second = encode_video(**PART), on_pid(encode_video(**PART), 0x100, 0x200, programme=2)
    frames = read(tmp_path, first + second + on_pid(first, 0x100, 0x300, programme=3), fps=10)
    np.testing.assert_allclose(frames.seconds, np.arange(60) / 10, atol=1e-6)
    assert numbers(frames)[:12] == numbers(frames)[20:32] == numbers(frames)[40:52] == list(range(12))


@pytest.mark.parametrize("order", [1, -1])
def test_a_pid_that_changes_its_codec_is_warned_about(tmp_path, order):
    kinds = [PART, {**PART, "codec": "mpeg2video", "rate": 25}][::order]
    frames = read(tmp_path, b"".join(encode_video(**how) for how in kinds), fps=50)
    assert any("another codec on the same PID" in w for w in frames.warnings)
    assert not any("codec" in w for w in read(tmp_path, encode_video(**PART) * 2, fps=50).warnings)


@pytest.mark.parametrize("how", [{}, {"container": "flv"}, {"movflags": "frag_keyframe+empty_moov"}])
def test_files_joined_byte_by_byte_are_read_or_warned_about(tmp_path, how):
    frames = read(tmp_path, encode_video(**how) * 2)
    assert any("2 files in one" in w for w in frames.warnings)


@pytest.mark.parametrize("container", ["mpeg", "vob", "matroska", "mpegts"])
def test_a_recording_behind_another_is_read_in_full(tmp_path, container):
    how = {"codec": "mpeg2video", "options": {"qmax": "2"}} if container in ("mpeg", "vob") else {}
    frames = read(tmp_path, encode_video(container=container, rate=25, count=20, **how) * 2, fps=25)
    assert numbers(frames)[:10] == numbers(frames)[20:30] == list(range(10))
    np.testing.assert_allclose(frames.seconds, np.arange(40) / 25, atol=2e-3)


# Gaps


@pytest.mark.parametrize(("name", "count"), [("outlier_last.mp4", 121), ("pause.mp4", 120)])
def test_samples_go_where_frames_are(name, count):
    frames = read_video(str(TROUBLE / name), VideoConfig(fps=2))
    assert len(frames.pixels) == count
    assert any("gaps without frames" in w for w in frames.warnings)


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv"])
@pytest.mark.parametrize("hole", [0, 1, 15, 29])
def test_a_gap_takes_one_sample(tmp_path, container, hole):
    ticks = [i * 100 + (3_600_000 if i > hole else 0) for i in range(31)]
    frames = read(
        tmp_path, encode_video(ticks_ms=ticks, container=container, options={"bf": "0"}), fps=10, max_frames=16
    )
    assert len(frames.pixels) == 16
    assert frames.seconds[-1] == pytest.approx(3603, abs=1e-3)
    assert any("gaps without frames" in w for w in frames.warnings)


# Streams


def two_streams(first: dict, second: dict, container: str = "matroska", default: int | None = None) -> bytes:
    output = io.BytesIO()
    with av.open(output, "w", format=container) as file:
        streams, packets = [], []
        for number, how in enumerate((first, second)):
            source = av.open(io.BytesIO(encode_video(**how)))
            stream = file.add_stream_from_template(source.streams.video[0])
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else 0
            streams.append(stream)
            packets += [(p, stream, source) for p in source.demux(video=0) if p.dts is not None]
        for packet, stream, _ in sorted(packets, key=lambda p: float(p[0].dts * p[0].time_base)):
            packet.stream = stream
            file.mux(packet)
    return output.getvalue()


LARGE, SMALL = {"size": (96, 64)}, {"size": (32, 24)}
STILL = {"codec": "mjpeg", "pixel_format": "yuvj420p", "count": 1, "size": (640, 480), "container": "matroska"}


def test_the_default_stream_is_the_video():
    assert read_video(str(TROUBLE / "two_streams.mkv"), VideoConfig()).pixels.shape[1:] == (64, 96, 3)


@pytest.mark.parametrize("container", ["matroska", "mpegts"])
@pytest.mark.parametrize("order", [(LARGE, SMALL), (SMALL, LARGE)])
def test_without_a_default_the_largest_stream_is_the_video(tmp_path, order, container):
    frames = read(tmp_path, two_streams(*order, container, default=2 if container == "matroska" else None))
    assert frames.pixels.shape[1:] == (64, 96, 3)


@pytest.mark.parametrize("default", [0, 1])
def test_a_default_stream_wins_over_a_larger_one(tmp_path, default):
    frames = read(tmp_path, two_streams(LARGE, SMALL, default=default))
    assert frames.pixels.shape[1:] == [(64, 96, 3), (24, 32, 3)][default]


@pytest.mark.parametrize("default", [0, 1, None])
def test_a_still_beside_a_video_is_not_the_video(tmp_path, default):
    frames = read(tmp_path, two_streams(STILL, SMALL, default=default))
    assert frames.pixels.shape == (3, 24, 32, 3)


@pytest.mark.parametrize("default", [0, 1])
def test_a_slow_stream_is_the_video_where_it_is_the_default(tmp_path, default):
    slow = {**LARGE, "ticks_ms": range(0, 20_000, 1000)}
    fast = {**SMALL, "count": 500, "rate": 25}
    frames = read(tmp_path, two_streams(slow, fast, default=default))
    assert frames.pixels.shape[1:] == [(64, 96, 3), (24, 32, 3)][default]


# Tapes


def test_a_raw_dv_stream_is_read(tmp_path):
    data = encode_video(container="dv", codec="dvvideo", size=(720, 576), rate=25, count=10)
    frames = read(tmp_path, data, fps=25)
    np.testing.assert_allclose(frames.seconds, np.arange(10) / 25, atol=1e-6)
    assert numbers(frames) == list(range(10))


# AVI


def test_avi_with_b_frames_has_its_times_in_presentation_order():
    frames = read_video(str(TROUBLE / "h264_bf3.avi"), VideoConfig(fps=25, max_frames=1000))
    np.testing.assert_allclose(frames.seconds, np.arange(500) / 25, atol=1e-6)


AVI_WITH_B_FRAMES = {
    "H.264": {"options": {"bf": "3"}},
    "MPEG-4": {"codec": "mpeg4", "options": {"bf": "2", "qmax": "2"}},
    "MPEG-2": {"codec": "mpeg2video", "options": {"bf": "2", "qmax": "2"}, "rate": 25},
}


@pytest.mark.parametrize("kind", AVI_WITH_B_FRAMES)
def test_avi_gives_every_frame_in_order(tmp_path, kind):
    how = {"count": 31, "gop": 12, **AVI_WITH_B_FRAMES[kind]}
    frames = read(tmp_path, encode_video(container="avi", **how), fps=25, max_frames=100)
    np.testing.assert_allclose(frames.seconds, np.arange(31) / how.get("rate", 10), atol=1e-6)
    assert numbers(frames)[:13] == list(range(13))
    assert not frames.warnings


def test_empty_chunks_at_the_end_of_an_avi_hold_its_last_frame():
    frames = read_video(str(TROUBLE / "mjpeg_still_end.avi"), VideoConfig())
    assert frames.duration_s == pytest.approx(8)
    assert frames.seconds.tolist() == [0, 1, 2]


def test_packed_b_frames_of_avi_are_in_order(tmp_path):
    plain = encode_video(container="avi", codec="mpeg4", count=31, gop=12, options={"bf": "1", "qmax": "2"})
    frames = read(tmp_path, packed(plain), fps=10, max_frames=100)
    np.testing.assert_allclose(frames.seconds, np.arange(31) / 10, atol=1e-6)
    assert numbers(frames)[:13] == list(range(13))


def packed(avi: bytes) -> bytes:
    """MPEG-4 as DivX stores it: a B-frame lies in the chunk of the frame before it, and an empty frame in its own."""
    output = io.BytesIO()
    with av.open(io.BytesIO(avi)) as source, av.open(output, "w", format="avi") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        frames = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        kinds = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 for data in frames]
        chunks: list[bytes] = []
        for data, kind in zip(frames, kinds, strict=True):
            if kind == 2:
                chunks[-1] += data
            chunks.append(b"\0\0\1\xb6\x50\0\x7f" if kind == 2 else data)
        at = chunks[0].index(b"\0\0\1\xb6")
        chunks[0] = chunks[0][:at] + b"\0\0\1\xb2DivX503b1393p" + chunks[0][at:]
        for number, data in enumerate(chunks):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = stream.time_base, stream, number == 0
            packet.time_base = source.streams.video[0].time_base
            target.mux(packet)
    return output.getvalue()


# Files that end early, and files that seem to


def test_a_segment_index_tells_that_a_file_is_cut_at_a_fragment(tmp_path):
    data = (TROUBLE / "dash_cut_at_boundary.mp4").read_bytes()
    assert code_of(tmp_path, data) == "truncated"


def test_a_header_tells_that_fragments_are_missing(tmp_path):
    data = encode_video(count=60, movflags="frag_keyframe+empty_moov+default_base_moof")
    fragments = [at - 4 for at in range(len(data)) if data[at : at + 4] == b"moof"]
    timescale = int.from_bytes(data[(at := data.index(b"mvhd") + 16) : at + 4], "big")
    whole = with_fragments_of(data, 6 * timescale)
    assert read(tmp_path, whole).duration_s == pytest.approx(6)
    assert code_of(tmp_path, whole[: fragments[3] + 16]) == "truncated"


def with_fragments_of(mp4: bytes, ticks: int) -> bytes:
    """A fragmented MP4 whose header declares the duration of all fragments."""
    box = struct.pack(">I4sII", 16, b"mehd", 0, ticks)
    data, at = bytearray(mp4), mp4.index(b"mvex") + 4
    data[at:at] = box
    for kind in (b"moov", b"mvex"):
        start = mp4.index(kind) - 4
        data[start : start + 4] = struct.pack(">I", int.from_bytes(mp4[start : start + 4], "big") + len(box))
    return bytes(data)


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "faststart", "", "dash+frag_keyframe+empty_moov"])
@pytest.mark.parametrize("junk", [b"\0" * 5000, b"\n-- end of upload --\n" * 9, b"</html>", bytes(range(256)) * 9])
def test_junk_behind_an_mp4_does_no_harm(tmp_path, flags, junk):
    data = encode_video(movflags=flags)
    plain, frames = read(tmp_path, data), read(tmp_path, data + junk)
    assert np.array_equal(plain.pixels, frames.pixels)


def test_text_behind_a_fragmented_mp4_does_no_harm():
    assert len(read_video(str(TROUBLE / "frag_trailing_text.mp4"), VideoConfig(fps=2)).pixels) == 12


# Encryption


def test_an_encrypted_mp4_is_named():
    with pytest.raises(VideoError) as caught:
        read_video(str(TROUBLE / "protected_h264_baseline_ctr.mp4"), VideoConfig())
    assert caught.value.code == "encrypted"


@pytest.mark.parametrize("tag", [b"encv", b"drmi"])
@pytest.mark.parametrize("movflags", ["faststart", "", "frag_keyframe+empty_moov"])
def test_a_codec_tag_of_encrypted_video_is_named(tmp_path, tag, movflags):
    data = encode_video(movflags=movflags)
    at = data.index(b"avc1", data.index(b"stsd"))
    assert code_of(tmp_path, data[:at] + tag + data[at + 4 :]) == "encrypted"


@pytest.mark.parametrize("container", ["matroska", "webm"])
def test_an_encrypted_matroska_is_named(tmp_path, container):
    data = encode_video(container=container, codec="libvpx-vp9" if container == "webm" else "libx264")
    with_key = ebml(0x47E1, b"\5") + ebml(0x47E2, b"0123456789abcdef")  # algorithm AES, identifier of the key
    encoding = ebml(0x6240, ebml(0x5033, b"\1") + ebml(0x5035, with_key))
    tracks, entry = 0x1654AE6B, 0xAE
    encrypted = with_element(data, [0x18538067, tracks, entry], ebml(0x6D80, encoding))
    assert code_of(tmp_path, encrypted) == "encrypted"


def ebml(kind: int, content: bytes) -> bytes:
    """An element of Matroska with a content of less than 127 bytes."""
    return kind.to_bytes((kind.bit_length() + 7) // 8, "big") + bytes([0x80 | len(content)]) + content


def with_element(data: bytes, path: list[int], element: bytes) -> bytes:
    """A Matroska file with a new first element in the first element at a path."""
    at, changed = 0, bytearray(data)
    while path:
        start = at + 9 - data[at].bit_length()
        length = 9 - data[start].bit_length()
        size = int.from_bytes(data[start : start + length], "big")
        content = start + length
        if int.from_bytes(data[at:start], "big") == path[0]:
            changed[start:content] = (size + len(element)).to_bytes(length, "big")
            at, path = content, path[1:]
        else:
            at = content + size - (1 << 7 * length)
    return bytes(changed[:at]) + element + bytes(changed[at:])


@pytest.mark.parametrize("headers_too", [False, True])
def test_a_scrambled_transport_stream_is_named(tmp_path, headers_too):
    data, rng = bytearray(encode_video(container="mpegts")), np.random.default_rng(0)
    seen = 0
    for at in range(0, len(data), 188):
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] == 0x100:
            seen += 1
            if headers_too or seen > 3:
                data[at + 3] |= 0x80
                data[at + 40 : at + 188] = rng.bytes(148)
    assert code_of(tmp_path, bytes(data)) == "encrypted"


# Damage


def test_pictures_mostly_from_damaged_data_are_an_error(tmp_path):
    assert code_of(tmp_path, (TROUBLE / "damaged_30_bytes_h264.mp4").read_bytes()) == "damaged"


def test_a_little_damage_is_counted_until_the_next_key_frame(tmp_path):
    data = flipped((CLIPS / "bbb_12s_h264.mp4").read_bytes(), seed=1, count=3, start_ratio=0.7)
    frames = read(tmp_path, data, fps=4)
    assert any("from damaged data" in w for w in frames.warnings)
    plain = read_video(str(CLIPS / "bbb_12s_h264.mp4"), VideoConfig(fps=4))
    wrong = sum(not np.array_equal(a, b) for a, b in zip(frames.pixels, plain.pixels, strict=True))
    said = next(int(w.split()[0]) for w in frames.warnings if "from damaged data" in w)
    assert 0 < wrong <= said


REFRESHED = {"x264-params": "intra-refresh=1:keyint=20:bframes=0:scenecut=0"}
OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=10:scenecut=0"}


@pytest.mark.parametrize("options", [REFRESHED, OPEN_GOP], ids=["intra refresh", "open GOP"])
def test_one_lost_packet_of_a_broadcast_is_no_reason_to_refuse_it(tmp_path, options):
    data = encode_video(size=(320, 240), options=options, count=100, container="mpegts")
    frames = read(tmp_path, data[: 188 * 60] + data[188 * 62 :], fps=5)
    assert len(frames.pixels) == 50
    assert any("damaged" in w for w in frames.warnings)


# Colour


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("colour", [("bt709", 1), ("smpte170m", 6), ("bt2020nc", 9)], ids=lambda c: c[0])
def test_the_matrix_of_the_file_gives_the_colours(tmp_path, colour, decoder):
    red, name = np.zeros((64, 64, 3), np.uint8), colour[0]
    red[:] = (200, 40, 60)
    data = colour_video(red, name, colour[1])
    frames = read(tmp_path, data, decoder=decoder)
    assert np.abs(frames.pixels[0].astype(int) - red).max() <= 4


def colour_video(rgb: np.ndarray, name: str, matrix: int) -> bytes:
    """A video of one colour whose numbers are made with the luma weights of its own standard."""
    kr, kb = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114), "bt2020nc": (0.2627, 0.0593)}[name]
    r, g, b = (float(x) / 255 for x in rgb[0, 0])
    luma = kr * r + (1 - kr - kb) * g + kb * b
    values = 16 + 219 * luma, 128 + 112 * (b - luma) / (1 - kb), 128 + 112 * (r - luma) / (1 - kr)
    frame = av.VideoFrame(64, 64, "yuv420p")
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(bytes([round(value)]) * plane.buffer_size)
    output = io.BytesIO()
    with av.open(output, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "1", "x264-params": f"colormatrix={name}"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = matrix
        for number in range(5):
            frame.pts = number
            frame.colorspace = matrix
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return output.getvalue()
