"""Time a step, and print the results as a table."""

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
    """The time and memory of a step.

    Attributes:
        seconds: median over all repeats.
        peak_bytes: the most GPU memory that the step took beyond what was in use before; 0 on a CPU.
    """

    seconds: float
    peak_bytes: int


def measure(step: Callable[[], object], device: Devices, repeats: int) -> Timing:
    """Run a step twice to warm up, then time it `repeats` times.

    The clock stops when all GPUs have finished. With several GPUs, memory is that of the GPU that took most.
    """
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
    """Wait until all GPUs among `devices` have finished their work."""
    for device in as_devices(devices):
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table. All rows must have the columns of the first row."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)
