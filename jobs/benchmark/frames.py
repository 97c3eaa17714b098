"""Measure what frames cost between decoder and vision tower, and how many of them need not be encoded."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from jobs.benchmark.still_films import STILL_FILMS, encode_still_film
from jobs.benchmark.timing import show
from sttm.models.pixel_bounds import PixelBounds
from sttm.models.processor import import_torchvision
from sttm.models.qwen2_vl import Qwen2VL
from sttm.models.still_frames import first_alike
from sttm.video.decode import VideoConfig, read_video

LEVELS = (0.0, 0.5, 1.0, 2.0)
_FRAMES_A_TOKEN = 2


def bench_frames(
    videos: Annotated[list[Path] | None, typer.Argument(help="files; default: three generated ones")] = None,
    fps: Annotated[float, typer.Option(min=0.01, help="sampled frames per second")] = 1.0,
    max_frames: Annotated[int, typer.Option(min=1, help="the most sampled frames")] = 128,
    seconds: Annotated[int, typer.Option(min=1, help="length of the generated videos")] = 120,
    resizing: Annotated[bool, typer.Option(help="also measure both ways of resizing, each in a new process")] = True,
) -> None:
    """Decode and resize videos for Qwen2-VL, frame by frame and all at once, and count frames that look alike.

    It runs on the CPU and needs no checkpoint. Example:

        python -m jobs.bench frames lecture.mp4 film.mp4
    """
    config = VideoConfig(fps=fps, max_frames=max_frames)
    with tempfile.TemporaryDirectory() as folder:
        files = videos or [_generated(Path(folder), kind, seconds) for kind in STILL_FILMS]
        rows = [_alike(file, config) | (_costs(file, config) if resizing else {}) for file in files]
    show(rows)
    print(json.dumps({"fps": fps, "max_frames": max_frames, "videos": rows}))


def _generated(folder: Path, kind: str, seconds: int) -> Path:
    (folder / f"{kind}.mp4").write_bytes(encode_still_film(kind, seconds))
    return folder / f"{kind}.mp4"


def _alike(file: Path, config: VideoConfig) -> dict[str, Any]:
    """Which shares of the grid frames take the features of others, and the CPU time of finding them."""
    frames = read_video(str(file), config, resizer=_family().resizing)
    costs, alike = {}, {}
    for levels in LEVELS:
        started = time.process_time()
        first = first_alike(frames.pixels, _FRAMES_A_TOKEN, levels)
        costs[levels] = time.process_time() - started
        alike[f"reused at {levels:g}"] = 1 - len(np.unique(first)) / len(first)
    count, size = len(frames.pixels), frames.pixels.shape
    return {
        "video": file.name,
        "frames": count,
        "resized to": f"{size[2]}x{size[1]}",
        **alike,
        "compare ms a frame": 1000 * costs[0.0] / count,
        "at 1 level": 1000 * costs[1.0] / count,
    }


def _costs(file: Path, config: VideoConfig) -> dict[str, float]:
    before, now = (_in_fresh_process(way, file, config) for way in (_all_at_once, _one_by_one))
    return {
        "cpu s before": before["cpu_s"],
        "cpu s now": now["cpu_s"],
        "MB before": before["mb"],
        "MB now": now["mb"],
    }


def _all_at_once(file: Path, config: VideoConfig) -> None:
    """As before frames were resized one by one: stack full-size frames, and let the processor resize and cut them."""
    family, frames = _family(), read_video(str(file), config)
    stacked = torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)
    family.processor(
        videos=[stacked], do_sample_frames=False, do_rescale=False, do_normalize=False, **family._size(len(stacked))
    )


def _one_by_one(file: Path, config: VideoConfig) -> None:
    family = _family()
    frames = read_video(str(file), config, resizer=family.resizing)
    family.inputs(frames.pixels, frames.seconds)


def _in_fresh_process(way: Callable[[Path, VideoConfig], None], file: Path, config: VideoConfig) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_spent, way, file, config).result()


def _spent(way: Callable[[Path, VideoConfig], None], file: Path, config: VideoConfig) -> dict[str, float]:
    """CPU seconds of one way, and the MB that it holds at most beyond what the process held before."""
    torch.set_num_threads(1)
    way(file, VideoConfig(fps=config.fps, max_frames=1))  # imports everything
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    held_kb, started = _resident_kb("VmRSS"), time.process_time()
    way(file, config)
    return {"cpu_s": time.process_time() - started, "mb": (_resident_kb("VmHWM") - held_kb) * 1024 / 1e6}


def _resident_kb(name: str) -> int:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _family() -> Qwen2VL:
    """The adapter of Qwen2-VL without weights and tokenizer, with the bounds of Qwen's own tools."""
    import_torchvision()
    from transformers import Qwen2VLConfig, Qwen2VLVideoProcessor

    bounds: PixelBounds | None = Qwen2VL.default_bounds
    return Qwen2VL(Qwen2VLConfig(), None, Qwen2VLVideoProcessor(cap_pixels_per_frame=False), bounds)
