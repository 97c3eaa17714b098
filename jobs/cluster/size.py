"""How many CPU cores and GPUs a job would have; no Ray cluster is started to find out."""

import os
from dataclasses import dataclass

import ray
import torch

from jobs.cluster.session import start_ray
from sttm.errors import SttmError


@dataclass(frozen=True)
class ClusterSize:
    """What a cluster has in all.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs.
    """

    cpus: int
    gpus: int


def cluster_size(address: str | None, gpus: int | None) -> ClusterSize | None:
    """The size of the cluster that a job would join, or of this machine; None if no cluster answers at the address.

    Args:
        address: address of the cluster; None takes `$RAY_ADDRESS`, else this machine.
        gpus: how many GPUs the settings say to use; None if the settings leave the number open.
    """
    if not (address or os.environ.get("RAY_ADDRESS")):
        found = ClusterSize(len(os.sched_getaffinity(0)), torch.cuda.device_count())
    else:
        try:
            with start_ray(address):
                there = ray.cluster_resources()
        except SttmError:
            return None
        found = ClusterSize(int(there.get("CPU", 0)), int(there.get("GPU", 0)))
    return found if gpus is None else ClusterSize(found.cpus, gpus)
