"""The decode benchmark: its reference decodes plainly, and what it compares is equal."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from media import CLIPS, encode_video

from jobs.benchmark.decode_cost import bench_decode, measure_decode
from jobs.benchmark.film import FILMS, write_films
from jobs.benchmark.plain_decode import read_plain
from sttm.config import IndexConfig
from sttm.errors import ConfigError
from sttm.indexer import VideoReader
from sttm.models.checkpoint import ModelConfig
from sttm.video.decode import VideoConfig

SETTINGS = IndexConfig(model=ModelConfig(path="tiny"), video=VideoConfig(fps=2.0, max_frames=8))


def test_the_reference_gives_the_frames_on_screen_of_a_decoder_that_decodes_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_video(count=60, rate=10, gop=7))
    pixels, seconds = read_plain(path, VideoConfig(fps=1.0, max_frames=4))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    on_screen = [0, 19, 39, 59]  # 5.9 s in four samples: 0, 1.97, 3.93 and 5.9 s
    assert seconds == pytest.approx([frames[number].time for number in on_screen])
    for found, number in zip(pixels, on_screen, strict=True):
        assert np.array_equal(found, frames[number].to_ndarray(format="rgb24"))


def test_the_reference_decodes_no_group_without_a_sample(tmp_path: Path) -> None:
    """A damaged group that no sample needs does not matter, unless the GOPs are open."""
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_video(count=100, rate=10, gop=10))
    whole = read_plain(path, VideoConfig(fps=1.0, max_frames=2))[0]
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in packets[20:80]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    assert np.array_equal(read_plain(path, VideoConfig(fps=1.0, max_frames=2))[0], whole)


@pytest.mark.parametrize("name", [path.name for path in sorted(CLIPS.glob("bbb*"))])
def test_frames_and_times_of_every_codec_are_equal(name: str) -> None:
    row = measure_decode(CLIPS / name, SETTINGS, repeats=1)
    assert (row.frames, row.pixels_equal, row.times_equal) == (8, True, True)
    assert row.times_less == pytest.approx(row.plain_cpu_s / row.cpu_s, rel=1e-2)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_turned_videos_are_equal(rotation: int, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_video(rotation=rotation, size=(128, 96)))
    row = measure_decode(tmp_path / "a.mp4", SETTINGS, repeats=1)
    assert row.pixels_equal


def test_open_gops_are_equal(tmp_path: Path) -> None:
    kind = replace(FILMS["720p24-hevc"], seconds=6, gop=30, width=192, height=108, bits_per_s=100_000)
    write_films({tmp_path / "a.mp4": kind})
    row = measure_decode(tmp_path / "a.mp4", SETTINGS, repeats=1)
    assert (row.frames, row.pixels_equal, row.times_equal) == (8, True, True)


def test_a_difference_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    read = VideoReader.read

    def late(self: VideoReader, ref: object) -> object:
        found = read(self, ref)  # type: ignore[arg-type]
        pixels = found.inputs.pixels.copy()
        pixels.flat[-1] ^= 1
        return replace(found, inputs=replace(found.inputs, pixels=pixels, seconds=found.inputs.seconds + 1e-9))

    monkeypatch.setattr(VideoReader, "read", late)
    row = measure_decode(CLIPS / "bbb_12s_h264.mp4", SETTINGS, repeats=1)
    assert (row.pixels_equal, row.times_equal) == (False, False)


def test_each_video_is_a_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_films({tmp_path / "720p24-h264-1s.mp4": replace(FILMS["720p24-h264"], seconds=1, width=192, height=108)})
    files = [CLIPS / "bbb_12s_h264.mp4"]
    bench_decode(files, film=["720p24-h264:1"], set_=["video.max_frames=4"], repeats=2, folder=tmp_path)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(line["bench"], line["video"]) for line in lines] == [
        ("decode", "bbb_12s_h264.mp4"),
        ("decode", "720p24-h264-1s.mp4"),
    ]
    assert [line["frames"] for line in lines] == [4, 2]
    assert lines[1]["what"].startswith("1 s of 192x108 h264 at 24 frames/s")


def test_nothing_to_decode_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name files, or give --film"):
        bench_decode()
    with pytest.raises(ConfigError, match=r"gone\.mp4 is no file"):
        bench_decode([tmp_path / "gone.mp4"])
