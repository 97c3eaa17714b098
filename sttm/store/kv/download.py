"""Copies from a GPU into page-locked memory, on streams of their own: neither the GPU nor the CPU waits for them."""

import torch
from torch import Tensor


class Downloaded:
    """Copies that were started; their targets may be read after `wait`."""

    def __init__(self, events: list[torch.cuda.Event]) -> None:
        self._events = events

    def wait(self) -> None:
        """Until all of them have arrived; the thread sleeps meanwhile."""
        for event in self._events:
            event.synchronize()


class Download:
    """Copies tensors to the CPU while later work on their device goes on; what lies on the CPU is copied at once."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def fetch(self, source: Tensor) -> Tensor:
        """A copy of `source` on the CPU, to be read after `started().wait()`; one that is there already is itself."""
        if not source.is_cuda:
            return source
        target = empty_for_copies(source.shape, source.dtype, True)
        self.copy(source, target)
        return target

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy `source`, as its device's current stream will have left it, to `target`, page-locked."""
        if not source.is_cuda:
            target.copy_(source)
            return
        if source.device not in self._streams:
            self._streams[source.device] = torch.cuda.Stream(source.device)
        stream = self._streams[source.device]
        stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(stream)  # its memory is not given to others before the copy has ended

    def started(self) -> Downloaded:
        """All copies so far."""
        events = []
        for stream in self._streams.values():
            event = torch.cuda.Event(blocking=True)
            event.record(stream)
            events.append(event)
        return Downloaded(events)


def empty_for_copies(shape: tuple[int, ...], dtype: torch.dtype, page_locked: bool) -> Tensor:
    """Memory on the CPU; PyTorch keeps what was page-locked for the next video, as locking it takes long."""
    return torch.empty(shape, dtype=dtype, pin_memory=page_locked)
