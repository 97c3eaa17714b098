"""Show in which kernels and copies of a GPU, or in which torch operators on a CPU, a step spends its time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from jobs.benchmark.timing import synchronize
from sttm.models.placement import Devices, as_devices

_NAME_LETTERS = 110  # names of kernels can have a thousand letters


@dataclass(frozen=True)
class Spent:
    """Time in one kernel, copy or operator.

    Attributes:
        name: its name.
        calls: number of calls.
        ms: milliseconds of all calls together.
        share: share of the whole step's time.
    """

    name: str
    calls: int
    ms: float
    share: float


def profiled(step: Callable[[], object], devices: Devices, limit: int = 25) -> list[Spent]:
    """Run a step twice and profile the second run: the `limit` entries that took longest."""
    is_cuda = as_devices(devices)[0].type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    step()
    synchronize(devices)
    with profile(activities=activities) as profiler:
        step()
        synchronize(devices)
    spent = {}
    for event in profiler.key_averages():
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel == is_cuda:
            us = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            spent[event.key] = (event.count, us / 1e3)
    whole = sum(ms for _, ms in spent.values())
    longest = sorted(spent.items(), key=lambda entry: -entry[1][1])[:limit]
    return [Spent(name[:_NAME_LETTERS], calls, ms, ms / whole) for name, (calls, ms) in longest]


def seconds_by_sdpa_kernel(clock: Callable[[], float]) -> dict[str, float | None]:
    """The result of `clock` with each kernel of SDPA forced; None if a kernel does not support the step."""
    seconds: dict[str, float | None] = {}
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(kernel):
                seconds[kernel.name] = clock()
        except RuntimeError:
            seconds[kernel.name] = None
    return seconds
