"""Copies from a GPU into page-locked memory on separate streams, so that neither GPU nor CPU waits for them."""

import torch
from torch import Tensor


class Downloaded:
    """Copies that were started. Their targets may be read after `wait`."""

    def __init__(self, events: list[torch.cuda.Event]) -> None:
        self._events = events

    def wait(self) -> None:
        """Sleep until all copies have arrived."""
        for event in self._events:
            event.synchronize()


class Download:
    """Copies tensors to the CPU while their device goes on with later work. A tensor on the CPU is copied at once."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def fetch(self, source: Tensor) -> Tensor:
        """A copy on the CPU, to be read after `started().wait()`. A tensor on the CPU is returned as it is."""
        if not source.is_cuda:
            return source
        target = empty_for_copies(source.shape, source.dtype, True)
        self.copy(source, target)
        return target

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Start a copy of a tensor; it sees what the work queued so far on the device's current stream leaves.

        Args:
            source: tensor on any device.
            target: tensor of the same shape and dtype on the CPU; page-locked if `source` is on a GPU.
        """
        if not source.is_cuda:
            target.copy_(source)
            return
        if source.device not in self._streams:
            self._streams[source.device] = torch.cuda.Stream(source.device)
        stream = self._streams[source.device]
        stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(stream)  # keeps the memory from being reused before the copy has ended

    def started(self) -> Downloaded:
        """All copies started so far, to wait for."""
        events = []
        for stream in self._streams.values():
            event = torch.cuda.Event(blocking=True)
            event.record(stream)
            events.append(event)
        return Downloaded(events)


def empty_for_copies(shape: tuple[int, ...], dtype: torch.dtype, page_locked: bool) -> Tensor:
    """An uninitialised tensor on the CPU. PyTorch reuses page-locked memory, because locking takes long."""
    return torch.empty(shape, dtype=dtype, pin_memory=page_locked)
