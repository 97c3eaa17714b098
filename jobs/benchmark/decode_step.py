"""One decode step against what memory allows: all weights and all keys and values are read once."""

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
    """A decode step of `rows` rows.

    Attributes:
        eager_s: launched kernel by kernel.
        step_s: as answers are generated: replayed as a CUDA graph where there is one.
        capture_s: what making the graph took, once for these rows; 0 where there is none.
        floor_s: bytes that must be read at the rate at which this device copies memory.
    """

    rows: int
    eager_s: float
    step_s: float
    capture_s: float
    floor_s: float


def decode_steps(
    model: LanguageModel, video: ReadyVideo, questions: Sequence[Sequence[int]], tokens: int
) -> list[StepRow]:
    """Steps of one row and of all rows."""
    rate = _bytes_per_s(model.device)
    weights = sum(p.nbytes for part in (model.text.layers, model.head) for p in part.parameters())
    rows = []
    for batch in dict.fromkeys((1, len(questions))):
        chosen = list(questions[:batch])
        eager = _times(Continuation(model, video, chosen, 0), tokens)  # no room: nothing that a graph would repay
        steps = _times(Continuation(model, video, chosen, tokens), tokens)
        own = 2 * batch * len(questions[0]) * sum(key.shape[0] * key.shape[2] * key.itemsize for key in video.keys)
        usual, floor = statistics.median(steps[len(steps) // 2 :]), (weights + video.size_bytes + own) / rate
        capture = max(0.0, max(steps) - usual) if model.device.type == "cuda" else 0.0
        rows.append(StepRow(batch, statistics.median(eager), usual, capture, floor))
    return rows


def _times(continuation: Continuation, tokens: int) -> list[float]:
    """Seconds of each step after the question; the second run of two, so that nothing is done for the first time."""
    last, seconds = continuation.start().argmax(-1), []
    for _ in range(tokens):
        last.tolist()
        started = time.perf_counter()
        last = continuation.step(last).argmax(-1)
        last.tolist()
        seconds.append(time.perf_counter() - started)
    return seconds


def _bytes_per_s(device: torch.device) -> float:
    """Bytes read and written a second by one large copy."""
    size = 2 << 30 if device.type == "cuda" else 64 << 20
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / measure(lambda: target.copy_(source), device, 5).seconds
