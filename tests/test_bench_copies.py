"""Copies of videos for benchmarks: other contents, the same frames, in every container."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from media import encode_video, remuxed

from jobs.benchmark.copies import write_copies
from sttm.errors import ConfigError
from sttm.video.decode import VideoConfig, read_video


def m2ts(data: bytes) -> bytes:
    """A transport stream with a time stamp of four bytes before each packet, as on Blu-ray discs."""
    return b"".join(bytes(4) + data[at : at + 188] for at in range(0, len(data), 188))


VIDEOS: dict[str, Callable[[], bytes]] = {
    "a.mp4": encode_video,
    "fragmented.mp4": partial(encode_video, movflags="frag_keyframe+empty_moov"),
    "a.mov": partial(encode_video, container="mov"),
    "a.mkv": partial(encode_video, container="matroska"),
    "a.webm": partial(encode_video, container="webm", codec="libvpx-vp9"),
    "a.ts": partial(encode_video, container="mpegts"),
    "a.m2ts": lambda: m2ts(encode_video(container="mpegts")),
    "a.mpg": lambda: remuxed(encode_video(codec="mpeg2video", rate=25), "mpeg"),
    "a.avi": partial(encode_video, container="avi", codec="mpeg4"),
}


@pytest.mark.parametrize("name", list(VIDEOS))
def test_copies_differ_in_content_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(VIDEOS[name]())
    write_copies(tmp_path / "copies", [tmp_path / name], 3)
    config = VideoConfig(fps=5.0)
    source, *copies = [read_video(str(path), config) for path in (tmp_path / name, *sorted(tmp_path.glob("copies/*")))]
    assert len({found.content_digest for found in (source, *copies)}) == 4
    for copy in copies:
        assert np.array_equal(copy.pixels, source.pixels)
        assert np.array_equal(copy.seconds, source.seconds)
        assert (copy.duration_s, copy.warnings) == (source.duration_s, source.warnings)


def test_sources_are_copied_in_turn(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mkv"):
        (tmp_path / name).write_bytes(VIDEOS["a.mp4" if name == "a.mp4" else "a.mkv"]())
    write_copies(tmp_path / "copies", [tmp_path / "a.mp4", tmp_path / "b.mkv"], 3)
    assert [path.name for path in sorted(tmp_path.glob("copies/*"))] == ["00000.mp4", "00001.mkv", "00002.mp4"]


def test_a_format_that_cannot_be_marked_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.flv").write_bytes(encode_video(container="flv"))
    with pytest.raises(ConfigError, match=r"a\.flv: only MP4, MOV, .* can be copied"):
        write_copies(tmp_path / "copies", [tmp_path / "a.flv"], 1)
