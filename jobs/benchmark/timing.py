"""Timing a step, and printing what was found."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sttm.models.placement import Devices, as_devices


@dataclass(frozen=True)
class Timing:
    """Median seconds of a step, and the most memory it took beyond what was held before (0 where unknown)."""

    seconds: float
    peak_bytes: int


def measure(step: Callable[[], object], device: Devices, repeats: int) -> Timing:
    """Run a step twice to warm up, then time it; the clock stops when all its GPUs have. Memory is of the fullest."""
    gpus = [gpu for gpu in as_devices(device) if gpu.type == "cuda"]
    for _ in range(2):
        step()
    synchronize(device)
    held = {}
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
        held[gpu] = torch.cuda.memory_allocated(gpu)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    peak = max((torch.cuda.max_memory_allocated(gpu) - held[gpu] for gpu in gpus), default=0)
    return Timing(statistics.median(seconds), peak)


def synchronize(devices: Devices) -> None:
    """Wait for all work of the GPUs among `devices`."""
    for device in as_devices(devices):
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table; all have the first one's columns."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)
