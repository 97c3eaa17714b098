"""Whether the GPUs or the CPU cores of a cluster bound an index run, by a forecast of what it costs."""

from dataclasses import dataclass

from jobs.cluster.size import ClusterSize
from jobs.indexing.forecast import Forecast


@dataclass(frozen=True)
class Limit:
    """What bounds a run.

    Attributes:
        cores_needed: CPU cores that must decode for each GPU, so that the GPU never waits.
        cores_there: CPU cores that decode for each GPU in the cluster; each actor has one more.
        hours: how long the run takes on this cluster, in hours.
    """

    cores_needed: float
    cores_there: float
    hours: float

    @property
    def gpu_idle_share(self) -> float:
        """Share of the run in which the GPUs wait for decoded videos."""
        return max(0.0, 1 - self.cores_there / self.cores_needed)

    def __str__(self) -> str:
        decode = f"decode needs {self.cores_needed:.3g} cores a GPU; the cluster has {self.cores_there:.3g}"
        if not self.gpu_idle_share:
            return f"{decode}: the GPUs are the limit, and the run takes {self.hours:.3g} hours"
        return (
            f"{decode}: the CPU cores are the limit, the GPUs wait {self.gpu_idle_share:.0%} of the time, "
            f"and the run takes {self.hours:.3g} hours"
        )


def limit_of(expected: Forecast, cluster: ClusterSize, gpus_per_model: int) -> Limit | None:
    """What bounds a run on this cluster; None if that is not known, or if no actor has a GPU.

    Args:
        expected: what the run costs.
        cluster: the cluster that it would run on.
        gpus_per_model: GPUs of each actor.
    """
    actors = cluster.gpus // gpus_per_model
    if expected.core_hours is None or not expected.gpu_hours or not actors:
        return None
    gpus = actors * gpus_per_model
    cores = max(1, cluster.cpus - actors)
    hours = max(expected.gpu_hours / gpus, expected.core_hours / cores)
    return Limit(expected.core_hours / expected.gpu_hours, cores / gpus, hours)
