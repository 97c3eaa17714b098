"""The generated films: each kind has the frames, the GOPs and the B-frames that its name promises."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from jobs.benchmark.film import FILMS, FilmKind, bench_film, describe, film_files, film_kind, write_films
from jobs.benchmark.film_scenes import draw_scene, scene_lengths
from sttm.errors import ConfigError
from sttm.video.decode import VideoConfig, read_video


def small(name: str, **changes: int) -> FilmKind:
    return replace(FILMS[name], **({"width": 192, "height": 108, "bits_per_s": 200_000, "threads": 1} | changes))


def test_a_film_is_an_ordinary_video_that_moves(tmp_path: Path) -> None:
    kind = small("720p24-h264", seconds=10, width=320, height=180, bits_per_s=300_000)
    write_films({tmp_path / "film.mp4": kind})
    assert 0.6 < (tmp_path / "film.mp4").stat().st_size * 8 / 10 / 300_000 < 1.5
    found = read_video(str(tmp_path / "film.mp4"), VideoConfig(fps=1.0))
    assert found.pixels.shape == (10, 180, 320, 3)
    assert not found.warnings
    changes = np.abs(np.diff(found.pixels.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert changes.min() > 3  # the camera and the things move, and a new scene begins after 8 s
    assert changes[7] > 2 * np.median(changes[:7])


@pytest.mark.parametrize("name", list(FILMS))
def test_every_kind_has_its_gops_and_b_frames(name: str, tmp_path: Path) -> None:
    kind = small(name, seconds=4, gop=min(FILMS[name].gop, 40))
    write_films({tmp_path / "film.mp4": kind})
    with av.open(str(tmp_path / "film.mp4")) as container:
        (stream,) = container.streams
        packets = [packet for packet in container.demux(stream) if packet.size]
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    with av.open(str(tmp_path / "film.mp4")) as container:
        types = Counter(PictureType(frame.pict_type).name for frame in container.decode(video=0))
    assert stream.codec_context.name == {"libx264": "h264", "libx265": "hevc"}[kind.codec]
    assert len(packets) == types.total() == 4 * kind.fps
    assert max(np.diff([*keys, len(packets)])) <= kind.gop + 4  # counted in decoding order
    assert len(keys) == -(-len(packets) // kind.gop)
    assert (types["B"] > len(packets) / 2) == (name not in ("1080p30-phone", "720p24-intra"))
    first = {number: min(p.pts for p in packets[number:]) for number in keys[1:]}
    is_open = any(first[number] < packets[number].pts for number in keys[1:])
    assert is_open == name.endswith("hevc")


def test_parts_are_joined_without_a_seam(tmp_path: Path) -> None:
    """Every frame is there, at its time, and looks like the picture that was drawn for it."""
    kind = small("720p24-h264", seconds=12, fps=12, bits_per_s=600_000)
    write_films({tmp_path / "film.mp4": kind})
    lengths = scene_lengths(12 * 12, 12)
    drawn = [planes for number, length in enumerate(lengths) for planes in draw_scene(number, length, 192, 108, 12)]
    assert lengths == [96, 36, 12]
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([number / 12 for number in range(144)])
    for number in (0, 1, 50, 94, 95, 96, 97, 131, 132, 143):
        found, shown = (planes[:108].astype(int) for planes in (frames[number].to_ndarray(), drawn[number]))
        other = drawn[(number + 24) % 144][:108]
        assert np.abs(found - shown).mean() < 5 < np.abs(found - other).mean()


def test_the_same_kind_gives_the_same_pictures() -> None:
    once, again = (np.stack(list(draw_scene(3, 4, 64, 36, 24))) for _ in range(2))
    assert np.array_equal(once, again)
    assert once[:, :36].min() >= 16
    assert once[:, :36].max() <= 235


def test_films_that_are_there_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "720p24-h264-7s.mp4"
    write_films({path: small("720p24-h264", seconds=1)})
    before = path.read_bytes()
    assert film_files([film_kind("720p24-h264:7")], tmp_path) == [path]
    bench_film(tmp_path, ["720p24-h264:7"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["rows"] == [{"film": path.name, "what": describe(path)}]
    assert path.read_bytes() == before


def test_a_name_may_have_a_length() -> None:
    assert film_kind("1080p30-phone") == FILMS["1080p30-phone"]
    assert film_kind("1080p30-phone:600").file_name == "1080p30-phone-600s.mp4"
    with pytest.raises(ConfigError, match="no film is named '4k'; choose one of 720p24-h264, "):
        film_kind("4k:10")
    for text in ("720p24-h264:0", "720p24-h264:ten", "720p24-h264:-1", "720p24-h264:1.5"):
        with pytest.raises(ConfigError, match="is no number of seconds"):
            film_kind(text)
