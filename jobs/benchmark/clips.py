"""Small synthetic videos for the throughput benchmark: H.264 files that are cheap to write and to decode."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip
from sttm.synthetic.scene import Scene


def write_clips(folder: Path, count: int, frames: int) -> list[Path]:
    """Write different clips of 392 x 392 pixels at 2 frames per second, and return their paths.

    Args:
        folder: the folder, which is made if need be.
        count: number of clips.
        frames: frames of each clip.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(number: int, scene: Scene) -> Path:
        path = folder / f"{number}.mp4"
        path.write_bytes(encode_clip(render([scene]).numpy()[0]))
        return path

    scenes = sample_scenes(seed=11, count=count, frames=frames)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(write, range(count), scenes))
