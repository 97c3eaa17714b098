"""One decode step as a CUDA graph: a thousand kernels in one launch, where a small batch waits for launches only.

What is captured runs again on the same memory. So everything that differs from step to step is a tensor that is
filled anew (token ids, the column they go to), and what the step returns is overwritten by the next one.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sttm.gpu import capture

_log = logging.getLogger(__name__)


class StepGraph:
    """A captured step.

    Args:
        run: the step: ids int64 [B, 1] and column int64 [1], on `device`, to logits. It must not wait for the device.
        rows: B.
        device: of all it touches.

    Raises:
        RuntimeError: the step does something that no graph can hold.
    """

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor], rows: int, device: torch.device) -> None:
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._graph = torch.cuda.CUDAGraph()
        shared = _shared(device)
        with shared.lock:
            self._logits = capture(self._graph, lambda: run(self._ids, self._column), shared.stream, shared.pool)

    def replay(self, ids: Tensor, column: int) -> Tensor:
        """Run the step for ids [B, 1]; its logits, which the next replay overwrites."""
        self._ids.copy_(ids)
        self._column.fill_(column)
        self._graph.replay()
        return self._logits


def captured(run: Callable[[Tensor, Tensor], Tensor], rows: int, device: torch.device) -> StepGraph | None:
    """The step as a graph, None where it cannot be captured: on a CPU, or if it waits for the device."""
    if device.type != "cuda":
        return None
    try:
        return StepGraph(run, rows, device)
    except RuntimeError as error:
        _log.warning("a decode step cannot become a CUDA graph and runs kernel by kernel: %s", error)
        return None


@dataclass(frozen=True)
class _Shared:
    """What all graphs of a device share: the stream they are captured on, and memory that they take turns in.

    Replays follow each other on one stream and leave nothing but their logits, so their memory may be the same; a pool
    each would be kept by the allocator after its graph has gone. A graph of next to nothing holds the pool.
    """

    stream: torch.cuda.Stream
    holder: torch.cuda.CUDAGraph
    lock: threading.Lock

    @property
    def pool(self) -> Any:
        return self.holder.pool()


@cache
def _shared(device: torch.device) -> _Shared:
    stream, holder = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    capture(holder, lambda: torch.zeros(1, device=device), stream, None)
    return _Shared(stream, holder, threading.Lock())
