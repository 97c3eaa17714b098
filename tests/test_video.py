"""Reading videos gives the right pixels at the right times, and a clear VideoError for every file that is not usable.

The reference is a plain PyAV loop that decodes every frame in order and keeps all of them.
"""

import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from blake3 import blake3
from media import CLIPS, PLAYLIST, TEXT, encode_audio, encode_video, flipped, picture, remuxed, truncated
from web_server import WebServer

from jobs.cluster.process_limits import allocating_at_most
from sttm.corpus.listing import VideoRef
from sttm.errors import VideoError
from sttm.video.decode import Frames, VideoConfig, read_video


def decode_all(data: bytes) -> tuple[list[np.ndarray], np.ndarray]:
    """Every frame of a video, upright, and its seconds after the first frame."""
    pixels, seconds = [], []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            pixels.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
            seconds.append(float(frame.pts * frame.time_base))
    return pixels, np.array(seconds) - seconds[0]


def on_screen(seconds: np.ndarray, times: list[float]) -> list[int]:
    """Numbers of the frames that are on screen at some times, without repetition."""
    return sorted({max(i for i, s in enumerate(seconds) if s <= t + 1e-3) for t in times})


def assert_right_frames(frames: Frames, data: bytes, times: list[float]) -> None:
    pixels, seconds = decode_all(data)
    expected = on_screen(seconds, times)
    np.testing.assert_allclose(frames.seconds, seconds[expected], atol=1e-9)
    assert frames.pixels.shape == (len(expected), *pixels[0].shape)
    for got, number in zip(frames.pixels, expected, strict=True):
        assert np.array_equal(got, pixels[number]), f"frame {number} differs"


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "clip.mp4") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def error_of(path: str, **settings) -> VideoError:
    with pytest.raises(VideoError) as caught:
        read_video(path, VideoConfig(**settings))
    assert Path(path).name in caught.value.message
    return caught.value


X264 = "x264-params"
OPEN_GOP = {X264: "open-gop=1:bframes=3:keyint=10:scenecut=0"}
INTRA_REFRESH = {X264: "intra-refresh=1:keyint=20:bframes=0:scenecut=0"}


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("name", ["bbb_12s_h264.mp4", "bbb_12s_hevc.mp4", "bbb_12s_vp9.webm", "bbb_12s_av1.mp4"])
def test_real_clips_equal_sequential_decoding(name, decoder):
    path = CLIPS / name
    frames = read_video(str(path), VideoConfig(fps=0.5, decoder=decoder))
    assert_right_frames(frames, path.read_bytes(), [0, 2, 4, 6, 8, 10])
    assert frames.decoder.startswith("pyav" if decoder == "auto" or "av1" in name else "decord")
    assert frames.duration_s == pytest.approx(12, abs=2e-3)
    assert not frames.warnings


ODD_VIDEOS = {
    "variable rate": ("decord", {"ticks_ms": [0, 40, 80, 500, 520, 2000, 2100, 3000]}),
    "turned 90": ("pyav", {"rotation": 90}),
    "turned 180": ("pyav", {"rotation": 180}),
    "turned 270": ("pyav", {"rotation": 270}),
    "MPEG-TS": ("pyav", {"container": "mpegts"}),
    "MPEG-PS": ("pyav", {"container": "mpeg", "codec": "mpeg2video", "rate": 25, "count": 76}),
    "AVI": ("pyav", {"container": "avi", "codec": "mpeg4"}),
    "FLV": ("pyav", {"container": "flv"}),
    "VP8 with hidden frames": ("pyav", {"container": "webm", "codec": "libvpx", "options": {"auto-alt-ref": "1"}}),
    "edit list": ("pyav", {"ticks_ms": range(-500, 3100, 100)}),
    "open GOP": ("pyav", {"options": OPEN_GOP, "count": 40}),
    "open GOP in Matroska": ("pyav", {"options": OPEN_GOP, "count": 40, "container": "matroska"}),
    "fragmented MP4": ("decord", {"movflags": "frag_keyframe+empty_moov"}),
    "index at the end": ("decord", {"movflags": ""}),
    "with audio": ("decord", {"audio_seconds": 5.0}),
    "full colour range": ("pyav", {"pixel_format": "yuvj420p"}),
    "10 bits": ("pyav", {"pixel_format": "yuv420p10le"}),
}


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("kind", ODD_VIDEOS)
def test_odd_videos_equal_sequential_decoding(write, kind, decoder):
    used, arguments = ODD_VIDEOS[kind]
    data = encode_video(**{"count": 31, **arguments})
    frames = read_video(write(data), VideoConfig(fps=5, max_frames=16, decoder=decoder))
    last = decode_all(data)[1][-1]
    assert_right_frames(frames, data, [t / 5 for t in range(16)] if last < 3.1 else list(np.linspace(0, last, 16)))
    assert frames.decoder.startswith(used if decoder == "decord" else "pyav")


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_recovery_points_are_no_entry_points(write, container):
    data = remuxed(encode_video(size=(320, 240), options=INTRA_REFRESH, count=60, container="mpegts"), container)
    with av.open(io.BytesIO(data)) as video:
        assert sum(packet.is_keyframe for packet in video.demux()) > 1
    assert_right_frames(read_video(write(data), VideoConfig(max_frames=3)), data, [0, 2.95, 5.9])


def test_rotation_shows_the_picture_upright(write):
    upright = np.rot90(picture(0, 64, 48))  # a quarter turn counter-clockwise, as the metadata asks
    frames = read_video(write(encode_video(rotation=90, options={"crf": "5"})), VideoConfig())
    assert np.abs(frames.pixels[0].astype(int) - upright).mean() < 5


def test_damaged_file_is_read_around_the_damage_and_says_so(write):
    data = (CLIPS / "bbb_12s_vp9.webm").read_bytes()
    frames = read_video(write(flipped(data, seed=6, count=6, start_ratio=0.1)), VideoConfig(fps=2))
    assert frames.decoder.startswith("pyav")
    assert any("packets cannot be decoded" in w for w in frames.warnings)


def test_change_of_picture_size_is_scaled_to_the_first(write):
    second = encode_video(container="mpegts", size=(128, 96), ticks_ms=range(3000, 6000, 100))
    frames = read_video(write(encode_video(container="mpegts") + second), VideoConfig())
    assert frames.pixels.shape == (6, 48, 64, 3)
    assert frames.warnings[-1] == "3 sampled frames are scaled to the size of the first"


def test_one_frame(write):
    frames = read_video(write(encode_video(count=1)), VideoConfig(fps=30, min_frames=4))
    assert frames.pixels.shape == (1, 48, 64, 3)
    assert frames.seconds.tolist() == [0]


def test_one_pixel(write):
    data = encode_video(size=(1, 1), pixel_format="yuv444p", count=10)
    assert read_video(write(data), VideoConfig(fps=10)).pixels.shape == (10, 1, 1, 3)


def test_cap_spreads_frames_from_first_to_last(write):
    data = encode_video(count=30)
    frames = read_video(write(data), VideoConfig(fps=10, max_frames=4))
    assert_right_frames(frames, data, [0, 0.967, 1.934, 2.9])


def test_min_frames_samples_a_short_video_denser(write):
    assert read_video(write(encode_video(count=8)), VideoConfig(fps=1, min_frames=4)).pixels.shape[0] == 4


def test_contradicting_caps_are_refused():
    with pytest.raises(ValueError, match="min_frames=9 is over max_frames=8"):
        VideoConfig(min_frames=9, max_frames=8)


def test_slow_video_gives_each_frame_once(write):
    frames = read_video(write(encode_video(count=4, rate=2)), VideoConfig(fps=30))
    np.testing.assert_allclose(frames.seconds, [0, 0.5, 1, 1.5])


def test_digest_and_size_are_of_the_file(write):
    data = encode_video(count=3)
    frames = read_video(write(data), VideoConfig())
    assert (frames.content_digest, frames.size_bytes) == (blake3(data).hexdigest(), len(data))


def test_no_decoded_frame_outlives_the_next(write):
    """Frames in a cycle of references would live on: their pictures and their scaler's threads fill the memory."""
    path = write(encode_video(count=30))
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        read_video(str(path), VideoConfig(fps=10))
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, av.VideoFrame)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_two_readings_are_equal(write):
    path = write(encode_video())
    first, second = read_video(path, VideoConfig()), read_video(path, VideoConfig())
    assert np.array_equal(first.pixels, second.pixels)
    assert repr(first) == repr(second)


def test_remote_file_is_read_like_a_local_one():
    data = encode_video()
    with fsspec.open("memory://videos/a.mp4", "wb") as f:
        f.write(data)
    assert_right_frames(read_video("memory://videos/a.mp4", VideoConfig(fps=2)), data, [0, 0.5, 1, 1.5, 2, 2.5])


def test_file_changed_since_listing_is_a_warning(write):
    path = write(encode_video())
    frames = read_video(VideoRef(f"file://{path}", "a", "clip.mp4", 7, ""), VideoConfig())
    assert "7 bytes when listed" in frames.warnings[0]


BAD_FILES = {
    "empty": ("empty_file", lambda: b""),
    "text": ("not_a_video", lambda: TEXT),
    "playlist": ("not_a_video", lambda: PLAYLIST),
    "concat script": ("not_a_video", lambda: f"ffconcat version 1.0\nfile {CLIPS}/bbb_12s_h264.mp4\n".encode()),
    "random bytes": ("not_a_video", lambda: np.random.default_rng(0).bytes(5000)),
    "image": ("not_a_video", lambda: encode_video(count=1, codec="png", container="image2pipe", pixel_format="rgb24")),
    "audio": ("no_video_stream", encode_audio),
    "audio with cover": ("no_video_stream", lambda: encode_audio(cover=True)),
    "half an MP4": ("truncated", lambda: truncated(encode_video(), 0.7)),
    "half an MP4, index at the end": ("truncated", lambda: truncated(encode_video(movflags=""), 0.7)),
    "half a fragmented MP4": ("truncated", lambda: truncated(encode_video(movflags="frag_keyframe+empty_moov"), 0.7)),
    "half a Matroska": ("truncated", lambda: truncated(encode_video(container="matroska"), 0.7)),
    "header of an MP4": ("truncated", lambda: encode_video()[:100]),
    "zeros for pictures": ("no_frames", lambda: zeroed(encode_video(), 0.0)),
    "zeros from the third second on": ("damaged", lambda: zeroed(encode_video(count=100, gop=1), 0.3)),
}


def zeroed(data: bytes, kept_ratio: float) -> bytes:
    """An MP4 with a good index but zeros for the last part of its pictures, as after a download with holes."""
    at = data.index(b"mdat") + 4
    at += int((len(data) - at) * kept_ratio)
    return data[:at] + bytes(len(data) - at)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_a_video_error_that_names_it(write, kind):
    code, make = BAD_FILES[kind]
    error = error_of(write(make()))
    assert error.code == code
    assert pickle.loads(pickle.dumps(error)).code == code


@pytest.mark.parametrize("name", ["bbb_12s_h264.mp4", "bbb_12s_vp9.webm", "bbb_12s_av1.mp4"])
@pytest.mark.parametrize("kept_ratio", [0.3, 0.6, 0.9])
def test_cut_off_real_clip_is_never_taken_for_a_whole_one(write, name, kept_ratio):
    assert error_of(write(truncated((CLIPS / name).read_bytes(), kept_ratio), name)).code == "truncated"


def test_what_is_no_readable_file(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "file").write_bytes(b"x")
    codes = {"folder.mp4": "unreadable", "pipe.mp4": "unreadable", "broken.mp4": "missing", "none.mp4": "missing"}
    for name, code in {**codes, "loop.mp4": "unreadable", "file/a.mp4": "unreadable", "a" * 300: "unreadable"}.items():
        assert error_of(str(tmp_path / name)).code == code, name


def test_no_permission_is_unreadable(write, monkeypatch):
    path = write(encode_video(count=1))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "_open", refuse)  # root may read everything
    assert error_of(path).code == "unreadable"


def test_unknown_protocol_is_unreadable_and_hides_secrets():
    with pytest.raises(VideoError) as caught:
        read_video("nosuch://user:hunter2@host/a.mp4?token=hunter2", VideoConfig())
    assert caught.value.code == "unreadable"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code"), [(404, "missing"), (410, "missing"), (401, "unreadable"), (403, "unreadable")]
)
def test_refusal_of_a_web_server_is_the_videos_fault(status, code):
    with WebServer() as web_server, pytest.raises(VideoError) as caught:
        read_video(web_server.url(str(status)), VideoConfig())
    assert caught.value.code == code
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_of_a_web_server_is_worth_another_try(status):
    message = rf"127.*/{status} cannot be read just now: status {status}"
    with WebServer() as web_server, pytest.raises(OSError, match=message) as caught:
        read_video(web_server.url(str(status)), VideoConfig())
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/a.mp4", "http://127.0.0.1:1/a.mp4?token=hunter2"])
def test_storage_out_of_reach_is_worth_another_try(monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(OSError, match=r"/a\.mp4 cannot be read just now: .*; check the network") as caught:
        read_video(url, VideoConfig())
    assert "hunter2" not in str(caught.value)


def test_web_video_is_read():
    with WebServer({"a.mp4": encode_video(count=3)}) as web_server:
        assert len(read_video(web_server.url("a.mp4"), VideoConfig(fps=10)).pixels) == 3


def outcomes_under_limits(path):
    outcomes = set()
    for extra in range(0, 128 << 20, 16 << 20):
        used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        try:
            with allocating_at_most(int(used.split()[1]) * 1024 + extra):
                outcomes.add(str(read_video(path, VideoConfig()).pixels.shape))
        except MemoryError as error:
            outcomes.add(type(error).__module__)
    return outcomes


def test_want_of_memory_is_never_the_videos_fault(write):
    large = {"size": (4096, 3072), "codec": "mjpeg", "pixel_format": "yuvj420p", "container": "avi"}
    path = write(encode_video(count=1, **large), "large.avi")
    # In a process of its own, because a process that ran other tests holds free memory that no limit counts.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        assert {"av.error", "(1, 3072, 4096, 3)"} <= fresh.submit(outcomes_under_limits, path).result()


def test_caps_stop_before_decoding(write):
    path = write(encode_video())
    assert error_of(path, max_source_bytes=1000).code == "too_large"
    assert error_of(path, max_pixels=64 * 47).code == "too_many_pixels"
    assert error_of(path, max_decoded_bytes=3 * 64 * 48 * 3 - 1).code == "too_many_pixels"
    assert len(read_video(path, VideoConfig(max_pixels=64 * 48, max_decoded_bytes=3 * 64 * 48 * 3)).pixels) == 3


def test_importing_loads_no_decoder_and_reading_is_silent(write):
    path = write(flipped((CLIPS / "bbb_12s_h264.mp4").read_bytes(), seed=2, count=2, start_ratio=0.8))
    code = (
        "import sys; from sttm.video.decode import *; assert not {'av', 'decord'} & set(sys.modules);"
        f"[read_video({path!r}, VideoConfig(decoder=d)) for d in ('auto', 'decord')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
