"""The built-in benchmark: synthetic clips that no training has seen, with all questions that can be asked about them.

Clip i does not depend on the number of clips, so that a quick run asks a part of what a full run asks. Clips are drawn
on the CPU, so that they are the same on every machine. They go straight from the renderer to the preprocessing, which
needs no video decoder. The renderer imitates the traces of a codec; `encoded` sends the clips through a real H.264 file
and the decoder as well.
"""

import tempfile
from pathlib import Path

import numpy as np

from sttm.evaluation.questions import Benchmark, Clip, Question, VideoQuestions
from sttm.synthetic import HELD_OUT_SEED, Scene, questions, render, sample_scenes
from sttm.video.decode import VideoConfig, read_video

SEED = HELD_OUT_SEED + 1_000_000  # other clips than those of the demo and of the reports of the training
CLIPS, QUICK_CLIPS = 400, 16
FPS = 2


def synthetic_benchmark(clips: int, encoded: VideoConfig | None = None, size: int = 392) -> Benchmark:
    """The first `clips` held-out clips, 16 frames each.

    Args:
        clips: number of clips.
        encoded: how to sample each clip after it was encoded as H.264; None does not encode it.
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
