"""Which GPU a kernel is launched on, and recording CUDA graphs while other threads use the same GPU."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_its_gpu(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make the GPU of the first argument, a tensor, the current one: Triton launches there."""

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(args[0]):
            return function(*args, **kwargs)

    return guarded


def capture(
    graph: torch.cuda.CUDAGraph, run: Callable[[], Result], stream: torch.cuda.Stream, pool: Any = None
) -> Result:
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
