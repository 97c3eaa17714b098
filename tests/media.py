"""Makes test videos: every function returns the bytes of a file, encoded on the spot with PyAV.

    (tmp_path / "a.mp4").write_bytes(encode_video(count=30, rate=10))
    encode_video(ticks_ms=[0, 40, 500, 2000])          variable frame rate
    encode_video(container="mpegts")                    MPEG transport stream
    truncated(encode_video(faststart=True), 0.5)        first half of a file

Frame number i is a grey picture with a white bar that grows with i, so that frames can be told apart after decoding.
"""

import io
import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CLIPS = Path(__file__).parent / "data" / "clips"
TROUBLE = Path(__file__).parent / "data" / "video"
TEXT = b"This is a text file that somebody renamed.\n" * 50
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"


def picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: brightness and bar tell the number (up to 50), the dark corner is top left."""
    pixels = np.full((height, width, 3), 30 + 4 * (number % 50), np.uint8)
    pixels[:, : 1 + number * width // 60] = 255
    pixels[: height // 4, : width // 4] = 0
    return pixels


def encode_video(
    *,
    count: int = 30,
    rate: int = 10,
    ticks_ms: Sequence[int] | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    container: str = "mp4",
    pixel_format: str = "yuv420p",
    gop: int = 10,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    movflags: str = "faststart",
    audio_seconds: float = 0.0,
) -> bytes:
    """A video of `count` frames at `rate` per second, or one frame at each of `ticks_ms` (negative ones are cut away).

    Args:
        size: width and height as stored; `rotation` (0, 90, 180, 270, counter-clockwise) only goes to the metadata.
        options: of the encoder.
        movflags: of the MP4 muxer, e.g. `frag_keyframe+empty_moov`; empty puts the index at the end.
        audio_seconds: adds a silent audio track.
    """
    ticks, tick = (range(count), Fraction(1, rate)) if ticks_ms is None else (ticks_ms, Fraction(1, 1000))
    flags = {"fflags": "+bitexact"} | ({"movflags": movflags} if container == "mp4" and movflags else {})
    with (
        tempfile.NamedTemporaryFile() as output,  # moving the index to the front reopens the file by name
        av.open(output.name, "w", format=container, container_options=flags) as file,
    ):
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = tick
        # x264's macroblock tree is not the same at every run, and tests want the same bytes
        stream.options = ({"mbtree": "0"} if codec == "libx264" else {}) | (options or {})
        if rotation:
            stream.set_display_rotation(rotation)
        track = file.add_stream("aac", rate=8000, layout="mono") if audio_seconds else None
        for number, pts in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = pts, tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if track is not None:
            _add_silence(file, track, audio_seconds)
        file.close()
        return Path(output.name).read_bytes()


def encode_audio(seconds: float = 1.0, *, cover: bool = False) -> bytes:
    """An M4A of silence, with a cover picture if asked for."""
    output = io.BytesIO()
    with av.open(output, "w", format="mp4") as file:
        track = file.add_stream("aac", rate=8000, layout="mono")
        if cover:
            art = file.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = 64, 48, "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(0, 64, 48), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = 0, Fraction(1, 1)
            file.mux([*art.encode(frame), *art.encode()])
        _add_silence(file, track, seconds)
    return output.getvalue()


def remuxed(data: bytes, container: str, bitstream_filter: str = "") -> bytes:
    """The packets of a video in another container, or changed by a bitstream filter of FFmpeg."""
    output = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(output, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        context = av.bitstream.BitStreamFilterContext(bitstream_filter or "null", source.streams.video[0])
        for packet in source.demux(video=0):
            for filtered in context.filter(packet) if packet.dts is not None else ():
                filtered.stream = stream
                target.mux(filtered)
    return output.getvalue()


def with_display_matrix(mp4: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 of one track with the numbers of a display matrix in the header of the track."""
    at = mp4.index(b"tkhd") + 4
    at += 52 if mp4[at] else 40
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return mp4[:at] + matrix + mp4[at + len(matrix) :]


def with_hevc_orientation(mp4: bytes, container: str, degrees: int, *, mirrored: bool, flipped: bool) -> bytes:
    """HEVC of an MP4 in a container, with a message at every key frame that turns it and the frames after it.

    Args:
        mp4: the video.
        container: FFmpeg's name of the format.
        degrees: counter-clockwise turn, after the mirroring.
        mirrored: from left to right.
        flipped: from top to bottom.
    """
    bits = f"0{mirrored:d}{flipped:d}{round(degrees * 65536 / 360) % 65536:016b}1" + "1000"
    message = b"\x4e\x01\x2f\x03" + int(bits, 2).to_bytes(3, "big") + b"\x80"
    output = io.BytesIO()
    with av.open(io.BytesIO(mp4)) as source, av.open(output, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            data = len(message).to_bytes(4, "big") + message if packet.is_keyframe else b""
            turned = av.Packet(data + bytes(packet))
            turned.pts, turned.dts, turned.duration = packet.pts, packet.dts, packet.duration
            turned.time_base, turned.is_keyframe, turned.stream = packet.time_base, packet.is_keyframe, stream
            target.mux(turned)
    return output.getvalue()


def turned(pixels: NDArray[np.uint8], a: int, b: int, c: int, d: int) -> NDArray[np.uint8]:
    """uint8 [T, H, W, ...]: stored pictures, moved pixel by pixel to where a display matrix shows them."""
    _, height, width, *_ = pixels.shape
    rows, columns = np.mgrid[:height, :width]
    x, y = a * columns + c * rows, b * columns + d * rows
    x, y = x - x.min(), y - y.min()
    moved = np.empty((len(pixels), y.max() + 1, x.max() + 1, *pixels.shape[3:]), np.uint8)
    moved[:, y, x] = pixels[:, rows, columns]
    return moved


def truncated(data: bytes, kept_ratio: float) -> bytes:
    """The first part of a file, as after an interrupted copy."""
    return data[: int(len(data) * kept_ratio)]


def flipped(data: bytes, seed: int, count: int = 20, start_ratio: float = 0.0) -> bytes:
    """The file with `count` bytes changed at random places behind `start_ratio`, as after a storage fault."""
    rng, damaged = np.random.default_rng(seed), bytearray(data)
    for at in rng.integers(int(len(data) * start_ratio), len(data), count):
        damaged[at] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def _add_silence(file: av.container.OutputContainer, track: av.AudioStream, seconds: float) -> None:
    for start in range(0, int(seconds * 8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        file.mux(track.encode(frame))
    file.mux(track.encode())
