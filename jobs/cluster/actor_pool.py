"""The actors of one job: started, watched and replaced when they die, each with the work that it holds.

The pool knows neither videos nor questions; both drivers use it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import ray

from jobs.cluster.calls import Calls
from jobs.cluster.faults import FaultKind, fault_of, first_line
from sttm.errors import ConfigError, SttmError

_LONGEST_WAIT_S = 60.0  # between two tries to start an actor


class Actor(Protocol):
    """What a pool can start: `__init__` only keeps its arguments, and `load` does the heavy work.

    Ray passes on an error of `load` as the exception that it is; of an error in `__init__` it keeps only the text.
    """

    def load(self) -> Any:
        """Get ready for work, such as by loading a model; what it returns is kept as `Worker.loaded`."""


class ActorSource(Protocol):
    """Where a pool gets its actors from."""

    @property
    def name(self) -> str:
        """What messages call the actors."""

    def start(self) -> tuple[Any, "Future[Any]"]:
        """Begin to start an actor; its handle, and the call of its `load`."""

    def kill(self, actor: Any) -> None:
        """End an actor, whatever it does."""


class RayActors:
    """Starts actors of one class on Ray, which itself restarts none and repeats no call.

    Args:
        kind: class of the actors.
        args: arguments of their `__init__`.
        gpus: GPUs of each actor.
        concurrency: calls that an actor runs at one time.
        cpus: CPUs of each actor.
    """

    def __init__(self, kind: type[Actor], args: tuple[Any, ...], gpus: int, concurrency: int, cpus: int = 1) -> None:
        resources = {"num_cpus": cpus} | ({"num_gpus": gpus} if gpus else {})
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": concurrency, **resources}
        self.name, self._args = kind.__name__, args
        self._remote = ray.remote(**options)(kind)

    def start(self) -> tuple[Any, "Future[Any]"]:
        """Ask Ray for an actor, which comes once the cluster has room for it."""
        actor = self._remote.remote(*self._args)
        return actor, actor.load.remote().future()

    def kill(self, actor: Any) -> None:
        """End the process of an actor."""
        ray.kill(actor)


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
        actor: handle of the actor; None while the place waits for `not_before`.
        deaths: how many actors in a row have died here before they were ready.
        not_before: time (`time.monotonic`) before which no actor is started here.
        is_ready: whether the actor has loaded and has not died.
        loaded: what `load` returned; None before.
        death: the error by which the death of the actor was noticed; None before.
        running: the work that the actor holds, by its call.
    """

    place: int
    actor: Any = None
    deaths: int = 0
    not_before: float = 0.0
    is_ready: bool = False
    loaded: Any = None
    death: BaseException | None = None
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
    """A fixed number of places for actors. The pool starts another actor where one died.

    Args:
        calls: the calls of the driver, which the calls of the actors are added to.
        source: where the actors come from.
        places: how many actors. An actor that the cluster has no room for waits, and holds up none of the others.
        on_ready: is called with each worker whose actor has become ready.

    Attributes:
        workers: one for each place, in no particular order.
    """

    def __init__(
        self,
        calls: Calls,
        source: ActorSource,
        places: int,
        on_ready: Callable[[Worker[WorkType]], None] = lambda worker: None,
    ) -> None:
        self._calls, self._source, self._on_ready = calls, source, on_ready
        self._deaths_at_start = self._running = 0
        self.workers: list[Worker[WorkType]] = [Worker(place) for place in range(places)]
        self._absent = list(self.workers)
        self.start_due()

    @property
    def is_busy(self) -> bool:
        """Whether any actor works on anything, or any call of a dead one has not ended yet."""
        return self._running > 0

    def start_due(self) -> None:
        """Start the actors whose wait is over; drivers call it again and again."""
        now = time.monotonic()
        for worker in [worker for worker in self._absent if worker.not_before <= now]:
            self._absent.remove(worker)
            worker.actor, loading = self._source.start()
            self._calls.add(loading, partial(self._end_load, worker))

    def run(
        self,
        worker: Worker[WorkType],
        call: "Future[Any]",
        work: WorkType,
        then: Callable[[Worker[WorkType], WorkType, "Future[Any]"], None],
    ) -> None:
        """Note that an actor has begun a piece of work.

        Args:
            worker: the actor.
            call: the call that does the work.
            work: the work.
            then: is called with the three of them when the call has ended; the worker no longer holds the work then.
        """
        worker.running[call] = work
        self._running += 1
        self._calls.add(call, partial(self._end_call, worker, then))

    def replace(self, worker: Worker[WorkType], error: BaseException) -> BaseException:
        """Start another actor in the place of one that died; nothing happens if that was done already.

        After an actor that died while it loaded the next one waits, each time longer: the actors of other places may
        need minutes to load what dies here at once. Other calls of the dead actor end by themselves.

        Args:
            worker: the place with the dead actor.
            error: what one of its calls ended with.

        Returns:
            The error by which the death of the actor was noticed first.
        """
        if worker.death is not None:
            return worker.death
        deaths = 0 if worker.is_ready else worker.deaths
        worker.death, worker.is_ready = error, False
        self._source.kill(worker.actor)  # Ray may only have lost contact with the actor, which would then keep its GPU
        wait_s = min(2.0 ** (deaths - 2), _LONGEST_WAIT_S) if deaths else 0.0
        other: Worker[WorkType] = Worker(worker.place, deaths=deaths, not_before=time.monotonic() + wait_s)
        self.workers.remove(worker)
        self.workers.append(other)
        self._absent.append(other)
        self.start_due()
        return error

    def release(self) -> None:
        """Let go of all actors, which then end by themselves."""
        for worker in self.workers:
            worker.actor = None

    def _end_call(
        self,
        worker: Worker[WorkType],
        then: Callable[[Worker[WorkType], WorkType, "Future[Any]"], None],
        call: "Future[Any]",
    ) -> None:
        self._running -= 1
        then(worker, worker.running.pop(call), call)

    def _end_load(self, worker: Worker[WorkType], loading: "Future[Any]") -> None:
        """Note that an actor is ready, or has died before.

        Raises:
            StartError: actors keep dying before they are ready, and none works; or an actor named an error of the
                settings or the model.
        """
        try:
            worker.loaded = loading.result()
        except Exception as error:
            self._deaths_at_start += 1
            worker.deaths += 1
            fault, works = fault_of(error), any(other.is_ready for other in self.workers)
            will_recur = isinstance(fault.cause, SttmError) and fault.kind is not FaultKind.LOST
            if will_recur or (self._deaths_at_start > 3 * len(self.workers) and not works):
                raise StartError(f"no {self._source.name} can start: {first_line(fault.cause)}") from error
            self.replace(worker, error)
            return
        worker.is_ready = True
        self._deaths_at_start = 0
        self._on_ready(worker)


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
