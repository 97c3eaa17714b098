"""A turned or mirrored video gives the same pictures as the plain one, upright, in every container.

The reference is the plain video, turned in numpy as the display matrix says.
"""

import numpy as np
import pytest
from media import TROUBLE, encode_video, picture, remuxed, turned, with_display_matrix, with_hevc_orientation

from sttm.video.decode import VideoConfig, read_video

ALL_EIGHT = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down and mirrored": (1, 0, 0, -1),
    "turned by 180": (-1, 0, 0, -1),
    "turned by 90 counter-clockwise": (0, -1, 1, 0),
    "turned by 90 clockwise": (0, 1, -1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}
CONTAINERS = {
    "mp4": {},
    "mov": {},
    "matroska": {},
    "webm": {"codec": "libvpx-vp9"},
    "HEVC in mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "AV1 in mp4": {"codec": "libsvtav1", "options": {"svtav1-params": "lp=1"}},
}


def read(tmp_path, data: bytes, decoder: str = "auto"):
    (tmp_path / "clip.bin").write_bytes(data)
    return read_video(str(tmp_path / "clip.bin"), VideoConfig(fps=5, decoder=decoder))


@pytest.fixture(scope="module")
def plain_videos() -> dict[str, bytes]:
    return {name: encode_video(count=12, gop=5, size=(66, 48), **how) for name, how in CONTAINERS.items()}


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("orientation", ALL_EIGHT)
def test_all_eight_orientations_are_upright(tmp_path, plain_videos, orientation, container, decoder):
    matrix, plain = ALL_EIGHT[orientation], plain_videos[container]
    data = with_display_matrix(plain, *matrix)
    data = data if container.endswith("mp4") else remuxed(data, container)
    frames = read(tmp_path, data, decoder)
    assert np.array_equal(frames.pixels, turned(read(tmp_path, plain).pixels, *matrix))
    assert not frames.warnings


# How an SEI message says it: mirrored first, then turned counter-clockwise.
MESSAGES = {
    "rotate=90": (0, -1, 1, 0),
    "rotate=180": (-1, 0, 0, -1),
    "rotate=270": (0, 1, -1, 0),
    "rotate=0:flip=horizontal": (-1, 0, 0, 1),
    "rotate=0:flip=vertical": (1, 0, 0, -1),
}


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "flv"])
@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_in_h264_turns_every_frame(tmp_path, message, container):
    plain = encode_video(count=12, gop=5, size=(66, 48))
    data = remuxed(plain, container, f"h264_metadata=display_orientation=insert:{message}")
    frames = read(tmp_path, data)
    assert np.array_equal(frames.pixels, turned(read(tmp_path, plain).pixels, *MESSAGES[message]))


HEVC_MESSAGES = {
    "turned by 90": ((90, False, False), (0, -1, 1, 0)),
    "turned by 180": ((180, False, False), (-1, 0, 0, -1)),
    "turned by 270": ((270, False, False), (0, 1, -1, 0)),
    "mirrored": ((0, True, False), (-1, 0, 0, 1)),
    "upside down": ((0, False, True), (1, 0, 0, -1)),
}


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("message", HEVC_MESSAGES)
def test_a_message_in_hevc_turns_every_frame(tmp_path, plain_videos, message, container):
    (degrees, mirrored, flipped), matrix = HEVC_MESSAGES[message]
    plain = plain_videos["HEVC in mp4"]
    data = with_hevc_orientation(plain, container, degrees, mirrored=mirrored, flipped=flipped)
    frames = read(tmp_path, data)
    assert np.array_equal(frames.pixels, turned(read(tmp_path, plain).pixels, *matrix))


@pytest.mark.parametrize(("name", "matrix"), [("mkv_rot90.mkv", (0, -1, 1, 0)), ("sei90.mp4", (0, -1, 1, 0))])
def test_files_from_elsewhere_are_upright(name, matrix):
    frames = read_video(str(TROUBLE / name), VideoConfig(fps=5))
    assert frames.pixels.shape[1:] == (96, 64, 3)


def test_a_picture_of_known_look_is_upright(tmp_path):
    mirrored = with_display_matrix(encode_video(options={"crf": "5"}), -1, 0, 0, 1)
    assert np.abs(read(tmp_path, mirrored).pixels[0].astype(int) - picture(0, 64, 48)[:, ::-1]).mean() < 5
