"""Launch kernels on the GPU of their tensors, and record CUDA graphs while other threads use the same GPU."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_its_gpu(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function whose first argument is a tensor: the tensor's GPU is current while the function runs.

    Triton launches kernels on the current GPU, wherever their arguments lie.
    """

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(args[0]):
            return function(*args, **kwargs)

    return guarded


def capture(
    graph: torch.cuda.CUDAGraph, run: Callable[[], Result], stream: torch.cuda.Stream, pool: Any = None
) -> Result:
    """Record the kernels that `run` launches into a graph, without running them yet.

    Args:
        graph: an empty graph.
        run: the function to record. It must not wait for the GPU.
        stream: the stream to record on. It must belong to the GPU that `run` uses, and nothing else may run on it.
        pool: memory pool of another graph, to be used in turn with that graph; None takes memory of its own.

    Returns:
        What `run` returned. Every replay of the graph overwrites the tensors in it.

    Raises:
        RuntimeError: `run` does something that a graph cannot record.
    """
    now = torch.cuda.current_stream(stream.device)
    stream.wait_stream(now)
    with torch.cuda.stream(stream):
        # The rules of a capture must apply to this thread only, because other threads copy and allocate meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            out = run()
        finally:
            graph.capture_end()
    now.wait_stream(stream)
    return out
