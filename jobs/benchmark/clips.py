"""Encoded videos for the throughput benchmark: real H.264 files, cheap to make and to decode.

A few synthetic scenes are encoded; every further file is one of them with an empty MP4 box of its own at the end, which
decoders skip. So contents, and with them the artifacts' identities, all differ.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sttm.synthetic import render, sample_scenes
from sttm.synthetic.encode import encode_clip
from sttm.synthetic.scene import Scene


def encode_scenes(count: int, frames: int) -> list[bytes]:
    """Different clips of 392 x 392 pixels, `frames` frames at 2 frames a second."""

    def encode(scene: Scene) -> bytes:
        return encode_clip(render([scene]).numpy()[0])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(encode, sample_scenes(seed=11, count=count, frames=frames)))


def write_clips(folder: Path, scenes: Sequence[bytes], count: int) -> None:
    """Fill a new folder with `count` files whose contents all differ."""
    folder.mkdir(parents=True)
    for number in range(count):
        free = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        (folder / f"{number:05d}.mp4").write_bytes(scenes[number % len(scenes)] + free)
