"""Timing a step, and printing what was found."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Timing:
    """Median seconds of a step, and the most memory it took beyond what was held before (0 where unknown)."""

    seconds: float
    peak_bytes: int


def measure(step: Callable[[], object], device: torch.device, repeats: int) -> Timing:
    """Run a step twice to warm up, then time it; on a GPU the clock stops when the GPU has."""
    cuda = device.type == "cuda"
    for _ in range(2):
        step()
    held = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Timing(statistics.median(seconds), torch.cuda.max_memory_allocated() - held if cuda else 0)


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table; all have the first one's columns."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)
