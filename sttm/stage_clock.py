"""Times of the stages of one video, on the clock of the device that works on it."""

import time
from collections.abc import Iterable

import torch


class StageClock:
    """Measures stages of work that a GPU does later than the CPU hands it out.

    The end of a stage is an event in the GPU's stream, so the CPU need not wait for it. Without a GPU, it is the time
    at which `end` is called.

    Args:
        devices: the devices that the work is spread over. On each of them, the work of the next stage waits until all
            devices have done the work of this stage.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._gpus = sorted({device for device in devices if device.type == "cuda"}, key=str)
        self._stages: list[str] = []
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._mark()

    def end(self, stage: str) -> None:
        """End a stage: all work handed out since the end of the previous stage belongs to it."""
        self._stages.append(stage)
        self._mark()

    def seconds(self) -> dict[str, float]:
        """Seconds that each stage took; sleeps until the last stage is done."""
        if not self._gpus:
            return {s: b - a for s, a, b in zip(self._stages, self._times, self._times[1:], strict=False)}
        self._events[-1].synchronize()
        pairs = zip(self._stages, self._events, self._events[1:], strict=False)
        return {stage: before.elapsed_time(after) / 1e3 for stage, before, after in pairs}

    def _mark(self) -> None:
        if not self._gpus:
            self._times.append(time.perf_counter())
            return
        stream = torch.cuda.current_stream(self._gpus[0])
        for other in self._gpus[1:]:
            stream.wait_stream(torch.cuda.current_stream(other))
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(stream)
        self._events.append(event)
