"""The actors of one job: started, watched and replaced when they die, each with the work that it holds.

The pool knows neither videos nor questions; both drivers use it.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray

from jobs.cluster.faults import FaultKind, fault_of, first_line
from sttm.errors import ConfigError, SttmError

_LONGEST_WAIT_S = 60.0  # between two tries to start an actor


class Actor(Protocol):
    """What the pool can start: `__init__` only keeps its arguments, and `load` does the heavy work.

    Ray passes on an error of `load` as the exception that it is; of an error in `__init__` it keeps only the text.
    """

    def load(self) -> None:
        """Get ready for work, such as by loading a model."""


class Work(Protocol):
    """One piece of work for an actor."""

    @property
    def crashes(self) -> int:
        """How many processes have died of it so far."""


WorkType = TypeVar("WorkType", bound=Work)


class StartError(SttmError):
    """Actors die before they take their first work, so the job cannot go on."""


@dataclass(eq=False)
class Worker(Generic[WorkType]):
    """One place of a pool, with the actor that is there now.

    Attributes:
        place: number of the place; the actor that replaces a dead one gets the same number.
        actor: Ray's handle of the actor; None while the place waits for `not_before`.
        loading: reference of the call of `load`; None while the place waits for `not_before`.
        deaths: how many actors in a row have died here before they were ready.
        not_before: time (`time.monotonic`) before which no actor is started here.
        is_ready: whether `load` has returned.
        running: the work that the actor holds, by the reference of its call.
    """

    place: int
    actor: Any = None
    loading: Any = None
    deaths: int = 0
    not_before: float = 0.0
    is_ready: bool = False
    running: dict[Any, WorkType] = field(default_factory=dict)

    def takes(self, work: WorkType, in_flight: int) -> bool:
        """Whether the actor may be given this work, too.

        Work that killed a process before runs alone, so that another crash costs no other work.

        Args:
            work: a piece of work that waits.
            in_flight: how many pieces an actor may hold.
        """
        if not self.is_ready or len(self.running) >= in_flight:
            return False
        return not self.running or not (work.crashes or any(other.crashes for other in self.running.values()))


class ActorPool(Generic[WorkType]):
    """A fixed number of places for actors. Ray restarts none; the pool starts another actor where one died.

    Args:
        kind: class of the actors.
        args: arguments of their `__init__`.
        places: how many actors. An actor that the cluster has no room for waits, and holds up none of the others.
        gpus: GPUs of each actor.
        concurrency: calls that an actor runs at one time.
        cpus: CPUs of each actor.

    Attributes:
        workers: one for each place, in no particular order.
    """

    def __init__(
        self, kind: type[Actor], args: tuple[Any, ...], places: int, gpus: int, concurrency: int, cpus: int = 1
    ) -> None:
        resources = {"num_cpus": cpus} | ({"num_gpus": gpus} if gpus else {})
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": concurrency, **resources}
        self._remote = ray.remote(**options)(kind)
        self._name, self._args = kind.__name__, args
        self._deaths_at_start = 0
        self.workers: list[Worker[WorkType]] = [Worker(place) for place in range(places)]
        self._start_due()

    @property
    def is_busy(self) -> bool:
        """Whether any actor works on anything."""
        return any(worker.running for worker in self.workers)

    def references(self) -> list[Any]:
        """Start the actors whose wait is over, and return what can end: calls under way, and actors that load."""
        self._start_due()
        calls = [reference for worker in self.workers for reference in worker.running]
        return calls + [worker.loading for worker in self.workers if worker.loading is not None]

    def end(self, reference: Any) -> tuple[Worker[WorkType], WorkType] | None:
        """Deal with one of `references` that has ended.

        Returns:
            The worker and its work if a call has ended; the worker no longer holds the work. None if an actor has
            finished loading or died at it.

        Raises:
            StartError: actors keep dying before they are ready, and none works; or an actor named an error of the
                settings or the model.
        """
        worker = next(w for w in self.workers if reference == w.loading or reference in w.running)
        if reference in worker.running:
            return worker, worker.running.pop(reference)
        try:
            ray.get(reference)
            worker.is_ready, worker.loading = True, None
            self._deaths_at_start = 0
        except Exception as error:
            self._deaths_at_start += 1
            worker.deaths += 1
            fault, works = fault_of(error), any(other.is_ready for other in self.workers)
            will_recur = isinstance(fault.cause, SttmError) and fault.kind is not FaultKind.LOST
            if will_recur or (self._deaths_at_start > 3 * len(self.workers) and not works):
                raise StartError(f"no {self._name} can start: {first_line(fault.cause)}") from error
            self.replace(worker)
        return None

    def replace(self, worker: Worker[WorkType]) -> dict[Any, WorkType]:
        """Start another actor in the place of one that died, and return the work that the dead one still held.

        After an actor that died while it loaded the next one waits, each time longer: the actors of other places may
        need minutes to load what dies here at once.
        """
        if worker not in self.workers:
            return {}
        self.workers.remove(worker)
        ray.kill(worker.actor)  # Ray may only have lost contact with the actor, which would then keep its GPU
        deaths = 0 if worker.is_ready else worker.deaths
        wait_s = min(2.0 ** (deaths - 2), _LONGEST_WAIT_S) if deaths else 0.0
        self.workers.append(Worker(worker.place, deaths=deaths, not_before=time.monotonic() + wait_s))
        self._start_due()
        return worker.running

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self.workers:
            if worker.actor is None and worker.not_before <= now:
                worker.actor = self._remote.remote(*self._args)
                worker.loading = worker.actor.load.remote()


def places_for(work: int, gpus: int | None, gpus_per_model: int, option: str) -> tuple[int, int]:
    """Decide how many actors a job gets, and how many GPUs each of them.

    Args:
        work: how many pieces of work there are; more actors than that make no sense.
        gpus: how many GPUs to use, counting those that an autoscaler will still add. None takes the GPUs that the
            cluster has now.
        gpus_per_model: how many GPUs each actor needs. With no GPU there is one actor, on the CPU.
        option: the name under which a user of this job sets `gpus`, for messages.

    Returns:
        The number of actors, and the number of GPUs of each.

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
