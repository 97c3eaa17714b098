"""Compare decoding with a plain decoder: CPU seconds, and whether frames and times are equal.

Both read, hash, sample and decode a file and resize its frames for the vision tower, in one thread of one process. They
take turns, so that other work on the machine meets both alike.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from jobs.benchmark.clips import write_clips
from jobs.benchmark.film import FILMS, describe, film_files, film_kind
from jobs.benchmark.plain_decode import read_plain
from jobs.benchmark.timing import show
from jobs.command import ConfigOption, SetOption
from sttm.config import IndexConfig, load_config
from sttm.corpus.listing import VideoRef
from sttm.errors import ConfigError
from sttm.indexer import VideoReader
from sttm.models.base import VideoInputs
from sttm.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class DecodeRow:
    """What decoding one video costs.

    Attributes:
        video: name of the file.
        what: length, frame size, codec, frame rate and bit rate.
        frames: sampled frames.
        grid: (T, H, W) of the visual tokens.
        plain_cpu_s: CPU seconds (user and system) of the plain decoder, median.
        cpu_s: CPU seconds of `sttm.indexer.VideoReader`, median.
        times_less: CPU seconds of the plain decoder divided by those of `VideoReader`, median over the turns.
        pixels_equal: the resized frames are equal, bit by bit.
        times_equal: the times of the frames are equal, bit by bit.
    """

    video: str
    what: str
    frames: int
    grid: tuple[int, int, int]
    plain_cpu_s: float
    cpu_s: float
    times_less: float
    pixels_equal: bool
    times_equal: bool


def bench_decode(
    files: Annotated[list[Path] | None, typer.Argument(help="video files; default: none")] = None,
    film: Annotated[
        list[str] | None, typer.Option(help=f"film to generate, NAME or NAME:SECONDS; names: {', '.join(FILMS)}")
    ] = None,
    config: ConfigOption = "qwen2_vl_7b",
    set_: SetOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="turns of both decoders; the median counts")] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="folder that keeps the films for later runs; default: none")
    ] = None,
) -> None:
    """Compare the CPU seconds of decoding with those of a plain decoder, and check that frames and times are equal.

    Sampling and sizes are those of the settings; the checkpoint is not needed. Prints one line of JSON for each video.
    Examples:

        python -m jobs.bench decode --film 720p24-h264 --film 720p24-h264:600
        python -m jobs.bench decode videos/*.mp4
    """
    if not files and not film:
        raise ConfigError("there is nothing to decode; name files, or give --film")
    if missing := [path for path in files or [] if not path.is_file()]:
        raise ConfigError(f"{missing[0]} is no file; name video files")
    settings = load_config(IndexConfig, config, ["model.path=tiny", *(set_ or [])])
    with tempfile.TemporaryDirectory(prefix="sttm-bench-") as temporary, _one_thread():
        films = film_files([film_kind(text) for text in film or []], folder or Path(temporary))
        measure_decode(write_clips(Path(temporary), 1, frames=8)[0], settings, repeats=1)  # loads all libraries
        for path in [*(files or []), *films]:
            row = measure_decode(path, settings, repeats)
            show([asdict(row)])
            print(json.dumps({"bench": "decode", "config": config, "repeats": repeats, **asdict(row)}), flush=True)


def measure_decode(path: Path, settings: IndexConfig, repeats: int) -> DecodeRow:
    """Decode a video plainly and with `VideoReader`, in turns.

    Args:
        path: the video file.
        settings: settings of the index.
        repeats: number of turns.

    Raises:
        VideoError: `VideoReader` cannot use the file.
    """
    reader, family = VideoReader(settings), Checkpoint.open(settings.model).family()
    ref = VideoRef.from_uri(str(path.resolve()))
    costs: list[tuple[float, float]] = []
    for _ in range(repeats):
        plain, plain_s = _cpu_seconds(lambda: family.preprocess(*read_plain(path, settings.video)))
        found, found_s = _cpu_seconds(lambda: reader.read(ref).inputs)
        costs.append((plain_s, found_s))
    return DecodeRow(
        video=path.name,
        what=describe(path),
        frames=len(found.seconds),
        grid=found.grid,
        plain_cpu_s=round(statistics.median(plain for plain, _ in costs), 4),
        cpu_s=round(statistics.median(found for _, found in costs), 4),
        times_less=round(statistics.median(plain / found for plain, found in costs), 4),
        pixels_equal=np.array_equal(plain.pixels, found.pixels),
        times_equal=np.array_equal(plain.seconds, found.seconds),
    )


def _cpu_seconds(step: Callable[[], VideoInputs]) -> tuple[VideoInputs, float]:
    started = time.process_time()
    result = step()
    return result, time.process_time() - started


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch, which resizes the frames, use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
