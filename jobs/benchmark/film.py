"""Encode films whose decoding costs about as much as that of real videos, in the ways that archives hold them.

    720p24-h264, 1080p30-h264     x264: GOPs of up to 250 frames that begin with scenes, a pyramid of B-frames
    1080p30-phone                 H.264 as phones write it: a GOP a second, no B-frames, 16 Mbit/s
    720p24-hevc, 1080p30-hevc     x265: open GOPs of up to 250 frames, a pyramid of B-frames
    720p24-intra                  H.264 without prediction between frames: a decoder can skip all frames but the sampled

B-frames, reference frames and GOPs are those of the encoder's defaults (for the phone: of its hardware encoder; x265
takes a fixed pattern of four B-frames). What the preset `superfast` leaves out is mostly the encoder's search.
"""

import io
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.benchmark.film_scenes import draw_scene, scene_lengths
from jobs.benchmark.timing import show
from sttm.errors import ConfigError

_X264 = "ref=3:bframes=3:b-adapt=1:b-pyramid=normal:weightp=2"
_X265 = (
    "ref=3:bframes=4:b-adapt=0:b-pyramid=1:open-gop=1:limit-refs=3:early-skip=1:rskip=2:fast-intra=1:rd=1:rdoq-level=0"
    ":me=dia:subme=1:frame-threads=1:log-level=none:pools=2"
)
_DEFAULT_S = 120


@dataclass(frozen=True)
class FilmKind:
    """A film that can be generated.

    Attributes:
        name: name of the kind, without the length.
        width: width of a frame in pixels, even.
        height: height of a frame in pixels, even.
        fps: frames per second.
        codec: FFmpeg's name of the encoder: libx264 or libx265.
        bits_per_s: average bit rate.
        gop: the most frames from one keyframe to the next.
        parameters: parameters of x264 or x265.
        scenes: scenes that are encoded in one go, which begins with a closed GOP.
        threads: threads that encode them.
        seconds: length of the film.
    """

    name: str
    width: int
    height: int
    fps: int
    codec: str
    bits_per_s: int
    gop: int = 250
    parameters: str = _X264
    scenes: int = 1
    threads: int = 1
    seconds: int = _DEFAULT_S

    @property
    def file_name(self) -> str:
        """A file name that no other kind and no other length has."""
        return f"{self.name}-{self.seconds}s.mp4"


_HEVC: dict[str, Any] = {"codec": "libx265", "parameters": _X265, "scenes": 3, "threads": 2}
_PHONE = "ref=1:bframes=0:scenecut=0:vbv-maxrate=20000:vbv-bufsize=16000"
FILMS = {
    kind.name: kind
    for kind in (
        FilmKind("720p24-h264", 1280, 720, 24, "libx264", 2_000_000),
        FilmKind("1080p30-h264", 1920, 1080, 30, "libx264", 4_000_000),
        FilmKind("1080p30-phone", 1920, 1080, 30, "libx264", 16_000_000, gop=30, parameters=_PHONE),
        FilmKind("720p24-hevc", 1280, 720, 24, bits_per_s=1_500_000, **_HEVC),
        FilmKind("1080p30-hevc", 1920, 1080, 30, bits_per_s=3_000_000, **_HEVC),
        FilmKind("720p24-intra", 1280, 720, 24, "libx264", 20_000_000, gop=1),
    )
}


def film_kind(text: str) -> FilmKind:
    """The kind that a command line names: `720p24-h264` for two minutes, `720p24-h264:600` for ten.

    Raises:
        ConfigError: there is no such kind, or the length is no number of seconds.
    """
    name, _, seconds = text.partition(":")
    if name not in FILMS:
        raise ConfigError(f"no film is named {name!r}; choose one of {', '.join(FILMS)}")
    if not (seconds or f"{_DEFAULT_S}").isdigit() or seconds == "0":
        raise ConfigError(f"{text!r}: {seconds!r} is no number of seconds; write for example {name}:600")
    return replace(FILMS[name], seconds=int(seconds or _DEFAULT_S))


def film_files(kinds: list[FilmKind], folder: Path) -> list[Path]:
    """Paths of the films in a folder, which is made if need be; films that it lacks are encoded on all cores."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / kind.file_name for kind in kinds]
    write_films({path: kind for path, kind in zip(paths, kinds, strict=True) if not path.exists()})
    return paths


def write_films(films: Mapping[Path, FilmKind]) -> None:
    """Encode films on all cores into MP4 files. A kind always gives the same pictures.

    Parts of a film are encoded independently and then joined, with the same packets as if one encoder had started each
    part with a keyframe.

    Args:
        films: the kind of each file to write; its folder must exist.
    """
    parts = [(path, kind, part) for path, kind in films.items() for part in _parts(kind)]
    parts.sort(key=lambda job: -_work(job[1], job[2]))  # the long ones first, so that none is left over at the end
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # encoders and numpy let other threads run
        encoded = {(path, part): threads.submit(_encode, kind, part) for path, kind, part in parts}
        for path, kind in films.items():
            partial = path.with_name(f"{path.name}.partial")
            _join(partial, kind, {part: encoded[path, part].result() for part in _parts(kind)})
            partial.rename(path)


@dataclass(frozen=True)
class _Part:
    """Scenes that one encoder encodes.

    Attributes:
        first: number of the first scene.
        start: frames of the film before this scene.
        lengths: frames of each scene.
    """

    first: int
    start: int
    lengths: tuple[int, ...]


def _parts(kind: FilmKind) -> list[_Part]:
    lengths = scene_lengths(kind.seconds * kind.fps, kind.fps)
    return [
        _Part(first, sum(lengths[:first]), tuple(lengths[first : first + kind.scenes]))
        for first in range(0, len(lengths), kind.scenes)
    ]


def _work(kind: FilmKind, part: _Part) -> float:
    """Encoding time of a part, roughly: HEVC takes five times as long as H.264."""
    return sum(part.lengths) * kind.width * kind.height * (5 if kind.codec == "libx265" else 1) / kind.threads


def _encode(kind: FilmKind, part: _Part) -> bytes:
    """The scenes as an MP4 whose times begin at 0."""
    import av

    output = io.BytesIO()
    with av.open(output, "w", format="mp4") as container:
        stream = container.add_stream(kind.codec, rate=kind.fps)
        stream.width, stream.height, stream.pix_fmt = kind.width, kind.height, "yuv420p"
        stream.bit_rate, stream.gop_size, stream.thread_count = kind.bits_per_s, kind.gop, kind.threads
        stream.options = {"preset": "superfast", f"{kind.codec.removeprefix('lib')}-params": kind.parameters}
        for number, length in enumerate(part.lengths, start=part.first):
            for planes in draw_scene(number, length, kind.width, kind.height, kind.fps):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    return output.getvalue()


def _join(path: Path, kind: FilmKind, parts: Mapping[_Part, bytes]) -> None:
    """Write the packets of all parts into one MP4."""
    import av

    with av.open(str(path), "w", format="mp4") as film:
        stream = None
        for part, data in parts.items():
            with av.open(io.BytesIO(data)) as container:
                stream = stream or film.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.dts is not None:
                        ticks = round(part.start / kind.fps / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
                        film.mux(packet)


def bench_film(
    folder: Annotated[Path, typer.Argument(help="folder for the films, which the other benchmarks take as --folder")],
    film: Annotated[
        list[str] | None,
        typer.Option(help=f"NAME or NAME:SECONDS; may be repeated; names: {', '.join(FILMS)}; default: all of them"),
    ] = None,
) -> None:
    """Generate films that cost as much to decode as real videos, on all cores. Films that are there are kept.

    Example:

        python -m jobs.bench film films --film 720p24-h264 --film 720p24-h264:600
    """
    kinds = [film_kind(text) for text in film or FILMS]
    started, started_cpu = time.perf_counter(), time.process_time()
    paths = film_files(kinds, folder)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    rows = [{"film": path.name, "what": describe(path)} for path in paths]
    show(rows)
    report = {"bench": "film", "seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2), "cpus": os.cpu_count()}
    print(json.dumps(report | {"rows": rows}), flush=True)


def describe(path: Path) -> str:
    """One line about a video file: length, frame size, codec, frame rate and bit rate."""
    import av

    with av.open(str(path)) as container:
        video = container.streams.video[0]
        seconds = (container.duration or 0) / av.time_base
        size, codec = f"{video.width}x{video.height}", video.codec_context.name
        rate = f"{float(video.average_rate or 0):.3g} frames/s"
    return f"{seconds:.0f} s of {size} {codec} at {rate}, {path.stat().st_size * 8e-6 / max(seconds, 1e-9):.1f} Mbit/s"
