"""Recording CUDA graphs while other threads use the same GPU."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def capture(graph: torch.cuda.CUDAGraph, run: Callable[[], T], stream: torch.cuda.Stream, pool: Any = None) -> T:
    """Record what `run` does into a graph; nothing is computed yet.

    Args:
        graph: an empty one.
        run: must not wait for the device. What it returns is overwritten by every replay.
        stream: to record on, of the device that `run` works on; not one that computes.
        pool: of another graph, whose memory this one takes turns in; None: memory of its own.

    Raises:
        RuntimeError: it does something that no graph can hold.
    """
    now = torch.cuda.current_stream(stream.device)
    stream.wait_stream(now)
    with torch.cuda.stream(stream):
        # Only what this thread does is held to the rules of a capture: others copy and allocate meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            out = run()
        finally:
            graph.capture_end()
    now.wait_stream(stream)
    return out
