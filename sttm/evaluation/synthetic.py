"""The built-in benchmark: synthetic clips that no training has seen, asked everything one can ask about them.

Clip i is the same whatever the number of clips, so a quick run asks a part of what a full run asks; clips are drawn on
the CPU, so that they are the same on every machine. They normally go from the renderer (whose own codec model leaves
its marks on them) straight to the preprocessing, which needs no video decoder; `encoded` sends them through a real
H.264 file and the decoder as well.
"""

import tempfile
from pathlib import Path

import numpy as np

from sttm.evaluation.questions import Benchmark, Clip, Question, VideoQuestions
from sttm.synthetic import HELD_OUT_SEED, Scene, questions, render, sample_scenes
from sttm.video.decode import VideoConfig, read_video

SEED = HELD_OUT_SEED + 1_000_000  # not the demo's clips, nor those that training reports on
CLIPS, QUICK_CLIPS = 400, 16
FPS = 2


def synthetic_benchmark(clips: int, encoded: VideoConfig | None = None, size: int = 392) -> Benchmark:
    """The first `clips` held-out clips, 16 frames each.

    Args:
        encoded: encode every clip as H.264 and read it back with these settings; None skips the file.
        size: side of the frames in pixels, a multiple of 56.
    """
    scenes = sample_scenes(SEED, clips, size=size)
    return Benchmark("synthetic", [_video(scene, encoded) for scene in scenes], [])


def _video(scene: Scene, encoded: VideoConfig | None) -> VideoQuestions:
    def read() -> Clip:
        pixels = render([scene])[0].numpy()
        if encoded is not None:
            return _through_h264(pixels, encoded)
        return Clip(pixels, np.arange(len(pixels)) / FPS)

    asked = tuple(Question(q.text, q.answer, q.options, task=q.task) for q in questions(scene))
    return VideoQuestions(scene.key, asked, read)


def _through_h264(pixels: np.ndarray, config: VideoConfig) -> Clip:
    from sttm.synthetic.encode import encode_clip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(encode_clip(pixels, FPS))
        frames = read_video(str(path), config)
    return Clip(frames.pixels, frames.seconds)
