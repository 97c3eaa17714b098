"""The actors of one job: started, watched, replaced when they die, each with the work it holds. Knows no video."""

import time
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray

from jobs.cluster.faults import cause_of, first_line, is_lost
from sttm.errors import ConfigError, SttmError


class Work(Protocol):
    """One piece of work for an actor."""

    @property
    def crashes(self) -> int:
        """How many processes have died of it so far."""


_LONGEST_WAIT_S = 60.0  # before another try to start

WorkType = TypeVar("WorkType", bound=Work)


class StartError(SttmError):
    """Actors die before they take their first work; nothing can be done."""


@dataclass(eq=False)
class Worker(Generic[WorkType]):
    """One actor.

    Attributes:
        place: which of the pool's; whoever replaces it has the same.
        actor, starting: its handle, and what ends when it is ready.
        deaths: how many in this place died at their start, one after another, before it.
        is_ready: whether that has ended.
        running: what it works on, by the call's reference.
    """

    place: int
    actor: Any
    starting: Any
    deaths: int = 0
    is_ready: bool = False
    running: dict[Any, WorkType] = field(default_factory=dict)

    def takes(self, work: WorkType, in_flight: int) -> bool:
        """Whether it may be given this too: what killed a process before runs alone, so that it costs nobody else."""
        if not self.is_ready or len(self.running) >= in_flight:
            return False
        return not self.running or not (work.crashes or any(other.crashes for other in self.running.values()))


class ActorPool(Generic[WorkType]):
    """A fixed number of places for actors. Ray restarts none; a place whose actor died gets another.

    Args:
        kind: class of the actors, with a method `ready` that returns once it can work.
        args: it is made with.
        places: how many actors. One that the cluster has no room for waits, and holds up none of the others.
        gpus, cpus: of each.
        concurrency: calls an actor runs at one time.

    Attributes:
        workers: the actors.
    """

    def __init__(
        self, kind: type, args: tuple[Any, ...], places: int, gpus: int, concurrency: int, cpus: int = 1
    ) -> None:
        resources = {"num_cpus": cpus} | ({"num_gpus": gpus} if gpus else {})
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": concurrency, **resources}
        self._remote = ray.remote(**options)(_made_when_ready(kind))
        self._name, self._args = kind.__name__, args
        self._deaths_at_start = 0
        self.workers: list[Worker[WorkType]] = []
        for place in range(places):
            self._start(place)

    @property
    def is_busy(self) -> bool:
        """Whether any actor works on anything."""
        return any(worker.running for worker in self.workers)

    def references(self) -> list[Any]:
        """What to wait for: calls under way, and actors that start."""
        calls = [reference for worker in self.workers for reference in worker.running]
        return calls + [worker.starting for worker in self.workers if not worker.is_ready]

    def end(self, reference: Any) -> tuple[Worker[WorkType], WorkType] | None:
        """Deal with one of `references` that has ended: a call's worker and work, which it holds no more; else None.

        Raises:
            StartError: actors keep dying at their start, and none works.
        """
        worker = next(w for w in self.workers if reference == w.starting or reference in w.running)
        if reference in worker.running:
            return worker, worker.running.pop(reference)
        try:
            worker.is_ready = ray.get(reference)
            self._deaths_at_start = 0
        except Exception as error:
            self._deaths_at_start += 1
            worker.deaths += 1
            cause, works = cause_of(error), any(other.is_ready for other in self.workers)
            will_recur = isinstance(cause, SttmError) and not is_lost(cause)
            if will_recur or (self._deaths_at_start > 3 * len(self.workers) and not works):
                raise StartError(f"no {self._name} can start: {first_line(cause)}") from error
            self.replace(worker)  # later each time: others may need minutes to load what dies here at once
        return None

    def replace(self, worker: Worker[WorkType]) -> dict[Any, WorkType]:
        """Start another actor in the place of one that died, and return what that one still held."""
        if worker not in self.workers:
            return {}
        self.workers.remove(worker)
        ray.kill(worker.actor)  # an unavailable actor may still hold its GPU
        self._start(worker.place, 0 if worker.is_ready else worker.deaths)
        return worker.running

    def _start(self, place: int, deaths: int = 0) -> None:
        actor = self._remote.remote(*self._args)
        wait_s = min(2.0 ** (deaths - 2), _LONGEST_WAIT_S) if deaths else 0.0
        self.workers.append(Worker(place, actor, actor.ready.remote(wait_s), deaths))


def _made_when_ready(kind: Any) -> type:
    """The class with its `__init__` run by `ready`: of an error in an actor's own `__init__` Ray hands on only text."""

    def keep(self: Any, *args: Any) -> None:
        self._made_with = args

    def ready(self: Any, wait_s: float) -> Any:
        time.sleep(wait_s)
        kind.__init__(self, *self._made_with)
        return kind.ready(self)

    return type(kind.__name__, (kind,), {"__init__": keep, "ready": ready})


def places_for(work: int, gpus: int | None, gpus_per_model: int, option: str) -> tuple[int, int]:
    """How many actors for so many pieces of work, and how many GPUs each.

    Args:
        work: how many pieces.
        gpus: how many GPUs to use, those not there yet included; None takes those that the cluster has now.
        gpus_per_model: how many each actor needs; 0 GPUs make one actor on a CPU.
        option: how a user of this job says `gpus`.

    Raises:
        ConfigError: there are GPUs, but fewer than one actor needs.
    """
    if gpus is None and not (gpus := int(ray.cluster_resources().get("GPU", 0))):
        print(f"Ray sees no GPU: on the CPU (where an autoscaler adds GPUs, say with {option} how many)", flush=True)
    if not gpus:
        return 1, 0
    if gpus < gpus_per_model:
        raise ConfigError(
            f"gpus_per_model is {gpus_per_model}, but there are {gpus} GPUs to use; lower it, or, where an autoscaler "
            f"adds GPUs, say with {option} how many"
        )
    return max(1, min(gpus // gpus_per_model, work)), gpus_per_model
