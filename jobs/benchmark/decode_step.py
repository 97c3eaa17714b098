"""Compare a decode step with its lower bound: the time to read all weights, keys and values from memory once."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jobs.benchmark.timing import measure
from sttm.engine.answer import Continuation
from sttm.engine.ready_video import ReadyVideo
from sttm.models.language_model import LanguageModel


@dataclass(frozen=True)
class StepRow:
    """A decode step for a batch of questions.

    Attributes:
        rows: number of questions in the batch.
        eager_s: seconds of the step if every kernel is launched separately.
        step_s: seconds of the step as answers are generated, which replays a CUDA graph on a GPU.
        capture_s: seconds that capturing the graph took, once for this batch; 0 if there is no graph.
        floor_s: lower bound in seconds: the bytes that must be read, at the rate at which this device copies memory.
    """

    rows: int
    eager_s: float
    step_s: float
    capture_s: float
    floor_s: float


def decode_steps(
    model: LanguageModel, video: ReadyVideo, questions: Sequence[Sequence[int]], tokens: int
) -> list[StepRow]:
    """Time the decode step of one question and of all questions together.

    Args:
        model: the language model.
        video: the video that the questions are about.
        questions: token ids of each question.
        tokens: number of steps to time.
    """
    rate = _bytes_per_s(model.device)
    weights = sum(p.nbytes for part in (model.text.layers, model.head) for p in part.parameters())
    rows = []
    for batch in dict.fromkeys((1, len(questions))):
        chosen = list(questions[:batch])
        eager = _times(Continuation(model, video, chosen, 0), tokens)  # with room for 0 tokens no graph is captured
        steps = _times(Continuation(model, video, chosen, tokens), tokens)
        own = 2 * batch * len(questions[0]) * sum(key.shape[0] * key.shape[2] * key.itemsize for key in video.keys)
        usual, floor = statistics.median(steps[len(steps) // 2 :]), (weights + video.size_bytes + own) / rate
        capture = max(0.0, max(steps) - usual) if model.device.type == "cuda" else 0.0
        rows.append(StepRow(batch, statistics.median(eager), usual, capture, floor))
    return rows


def _times(continuation: Continuation, tokens: int) -> list[float]:
    """Seconds of each step after the question."""
    last, seconds = continuation.start().argmax(-1), []
    for _ in range(tokens):
        last.tolist()
        started = time.perf_counter()
        last = continuation.step(last).argmax(-1)
        last.tolist()
        seconds.append(time.perf_counter() - started)
    return seconds


def _bytes_per_s(device: torch.device) -> float:
    """Bytes per second that one large copy reads and writes together."""
    size = 2 << 30 if device.type == "cuda" else 64 << 20
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / measure(lambda: target.copy_(source), device, 5).seconds
