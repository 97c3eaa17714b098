"""One decode step as a CUDA graph: one launch in place of a thousand, which small batches spend most of a step on.

A graph runs again on the memory that it was captured with. So everything that differs from step to step (token ids, the
column they go to) is a tensor that is filled again before each replay, and each replay overwrites the logits.
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
    """A decode step that was captured as a CUDA graph.

    Args:
        run: the step. It takes ids, int64 [B, 1], and their column, int64 [1], and returns logits. It must not wait for
            the device.
        rows: B, the number of rows.
        device: the device of all tensors that the step uses.

    Raises:
        RuntimeError: the step does something that a graph cannot hold, such as waiting for the device.
    """

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor], rows: int, device: torch.device) -> None:
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._graph = torch.cuda.CUDAGraph()
        shared = _shared(device)
        with shared.lock:
            self._logits = capture(self._graph, lambda: run(self._ids, self._column), shared.stream, shared.pool)

    def replay(self, ids: Tensor, column: int) -> Tensor:
        """Run the step for ids, int64 [B, 1]. Returns the logits, which the next replay overwrites."""
        self._ids.copy_(ids)
        self._column.fill_(column)
        self._graph.replay()
        return self._logits


def captured(run: Callable[[Tensor, Tensor], Tensor], rows: int, device: torch.device) -> StepGraph | None:
    """Capture a step. Returns None where that is impossible: on a CPU, or if the step waits for the device."""
    if device.type != "cuda":
        return None
    try:
        return StepGraph(run, rows, device)
    except RuntimeError as error:
        _log.warning("a decode step cannot become a CUDA graph and runs kernel by kernel: %s", error)
        return None


@dataclass(frozen=True)
class _Shared:
    """The capture stream and the memory pool that all graphs of a device share.

    Replays follow each other on one stream and keep nothing but their logits, so they can use the same memory. With a
    pool for each graph the allocator would keep its memory after the graph is gone. A tiny graph keeps the shared pool
    alive.
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
