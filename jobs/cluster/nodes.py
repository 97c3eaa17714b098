"""The machines of a cluster, and how many tasks of one kind they take at a time."""

from collections.abc import Iterable
from dataclasses import dataclass

import ray


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster has in all, used or not.

    Attributes:
        cpus: CPU cores.
        memory_bytes: memory for tasks and actors.
        object_store_bytes: memory for the objects that tasks return.
    """

    cpus: float
    memory_bytes: float
    object_store_bytes: float


@dataclass(frozen=True)
class TaskNeeds:
    """What one task takes, besides a CPU core.

    Attributes:
        memory_bytes: memory of its process.
        returned_bytes: size of the object that the task returns.
    """

    memory_bytes: int
    returned_bytes: int


def alive_nodes() -> tuple[Node, ...]:
    """The machines that are in the Ray cluster now."""
    found = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return tuple(
        Node(has.get("CPU", 0.0), has.get("memory", 0.0), has.get("object_store_memory", 0.0)) for has in found
    )


def tasks_at_a_time(nodes: Iterable[Node], cpus_taken: float, needs: TaskNeeds, share_of_object_store: float) -> int:
    """How many tasks of one CPU core the machines take at a time.

    A machine takes as many as it has cores, and as its memory and its object store hold.

    Args:
        nodes: the machines.
        cpus_taken: cores that are taken by others, on whichever machine.
        needs: what each task takes besides a core.
        share_of_object_store: share of each machine's object store that may be filled.
    """
    cpus = fitting = 0
    for node in nodes:
        cpus += int(node.cpus)
        in_memory = node.memory_bytes // max(1, needs.memory_bytes)
        in_store = share_of_object_store * node.object_store_bytes // max(1, needs.returned_bytes)
        fitting += int(min(node.cpus, in_memory, in_store))
    return max(0, min(fitting, int(cpus - cpus_taken)))
