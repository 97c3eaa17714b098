"""Videos for the throughput benchmark: H.264 files that are cheap to write and to decode.

A few synthetic scenes are encoded. All files are copies of them, each with its own number in an MP4 box `free` at the
end, which decoders skip. So no two files have the same content, and all artifacts have different identities.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip
from sttm.synthetic.scene import Scene


def encode_scenes(count: int, frames: int) -> list[bytes]:
    """Encode `count` different clips of 392 x 392 pixels with `frames` frames at 2 frames per second."""

    def encode(scene: Scene) -> bytes:
        return encode_clip(render([scene]).numpy()[0])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(encode, sample_scenes(seed=11, count=count, frames=frames)))


def write_clips(folder: Path, scenes: Sequence[bytes], count: int) -> None:
    """Write `count` files with different contents into a new folder.

    Args:
        folder: the folder, which must not exist yet.
        scenes: encoded clips, which are used in turn.
        count: number of files.
    """
    folder.mkdir(parents=True)
    for number in range(count):
        free = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        (folder / f"{number:05d}.mp4").write_bytes(scenes[number % len(scenes)] + free)
