"""Several replicas of the service on Ray Serve, each with a model of its own.

One process takes all HTTP requests, so keys, limits, streaming and draining are the same code as without replicas. Ray
Serve starts, watches and replaces the replicas behind it. A consistent hash of the video's identity picks the replica,
so that all questions about a video go to the one that has it in memory. If a replica dies, the answers that it was
giving are lost. Questions whose answers had not begun are asked again.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from jobs.cluster.faults import cause_of
from jobs.cluster.session import start_ray
from jobs.serving.api_error import ApiError
from jobs.serving.replica import Replica, ReplicaSettings, Report
from sttm.errors import ConfigError
from sttm.query.cache_tier import CacheState, Identities
from sttm.query.question import Query
from sttm.query.request import OnEvent, Piece
from sttm.query.scheduler import BusyError

_APPLICATION, _DEPLOYMENT = "sttm", "replica"
_LOGGING: Any = {"log_level": "WARNING", "enable_access_log": False}
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_DIED = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
_TRIES, _PAUSE_S = 8, 0.25  # attempts if replicas die; the pause after each doubles


class Replicas:
    """Starts the replicas and answers through them; implements `Answerer`. `close` ends them.

    Args:
        settings: what each replica is started with.
        count: number of replicas.
        gpus_per_model: GPUs that each replica spreads its model over; ignored where there is none.
        address: address of a Ray cluster. None takes `$RAY_ADDRESS`, and without it starts Ray on this machine.
        drain_s: seconds that answers get to finish when the replicas are closed.

    Attributes:
        caches: the state of each replica's caches when it last ended an answer.

    Raises:
        ConfigError: this machine has too few GPUs.
    """

    def __init__(
        self, settings: ReplicaSettings, count: int, gpus_per_model: int, address: str | None, drain_s: float
    ) -> None:
        self.caches: dict[str, CacheState] = {}
        self._requests: set[_ReplicaRequest] = set()
        self._is_closing = False
        self._max_requests = count * settings.max_questions
        self._ray = ExitStack()
        self._ray.enter_context(start_ray(address))
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus < count * gpus_per_model and not address:
            self._ray.close()
            raise ConfigError(
                f"serve.replicas={count} needs {gpus_per_model} GPUs each, and this machine has {gpus}; ask for fewer"
            )
        serve.start(proxy_location="Disabled", logging_config=_LOGGING)
        deployment = serve.deployment(
            Replica,
            name=_DEPLOYMENT,
            num_replicas=count,
            ray_actor_options={"num_gpus": gpus_per_model, "num_cpus": 1} if gpus else {"num_cpus": 0},
            max_ongoing_requests=settings.max_questions,
            health_check_period_s=2,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=drain_s,
            request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
            logging_config=_LOGGING,
        )
        application = deployment.bind(settings)
        self._handle = serve.run(application, name=_APPLICATION, route_prefix=None)
        self._handle.ready.remote().result(timeout_s=60)  # The first call sets the router up.

    @property
    def running(self) -> int:
        return sum(request.has_begun for request in self._requests)

    @property
    def waiting(self) -> int:
        return len(self._requests) - self.running

    @property
    def is_alive(self) -> bool:
        """Whether any replica is up. Ray Serve replaces those that are not."""
        status = serve.status().applications[_APPLICATION].deployments[_DEPLOYMENT]
        return status.replica_states.get("RUNNING", 0) > 0

    def submit(
        self, identities: Identities, query: Query, on_event: OnEvent, options: Sequence[str] = ()
    ) -> "_ReplicaRequest":
        """Ask about a video, from within an event loop.

        Args:
            identities: the artifact that the query is about, or several that are shown one after the other.
            query: the turns, and how the answer is generated.
            on_event: takes the events of the answer, called in this event loop.
            options: answers of which the likeliest is chosen. None means that text is generated.

        Raises:
            BusyError: too many questions wait already, or the service is ending.
        """
        if self._is_closing or len(self._requests) >= self._max_requests:
            raise BusyError(f"{len(self._requests)} questions are waiting; ask again later")
        # A question about several videos goes to the replica that holds the first of them.
        replica = self._handle.options(session_id=identities[0], stream=True)
        request = _ReplicaRequest(
            lambda: replica.answer.remote(identities, query, tuple(options)), on_event, self.caches
        )
        self._requests.add(request)
        request.task.add_done_callback(lambda _: self._requests.discard(request))
        return request

    def close(self) -> None:
        """End the replicas. The server has waited for the answers already."""
        self._is_closing = True
        serve.shutdown()
        self._ray.close()


class _ReplicaRequest:
    """One question that a replica answers.

    Args:
        ask: sends the question to a replica and returns the stream of events.
        on_event: takes the events.
        caches: filled with the replica's reports.
    """

    def __init__(self, ask: Callable[[], Any], on_event: OnEvent, caches: dict[str, CacheState]) -> None:
        self._ask, self._on_event, self._caches, self.has_begun = ask, on_event, caches, False
        self.task = asyncio.get_running_loop().create_task(self._relay())

    def cancel(self) -> None:
        self.task.cancel()

    async def _relay(self) -> None:
        """Hand the events on. Ask again while no text has come and the replica dies."""
        for number in range(_TRIES):
            stream = self._ask()
            try:
                async for events in stream:
                    for event in events:
                        self._emit(event)
                return
            except asyncio.CancelledError:
                stream.cancel()
                raise
            except BackPressureError as error:
                self._on_event(BusyError(str(error)))
                return
            except Exception as error:
                cause = cause_of(error)
                if not isinstance(cause, _DIED):
                    self._on_event(cause)
                    return
                if self.has_begun:
                    break
                await asyncio.sleep(_PAUSE_S * 2**number)
        self._on_event(ApiError(503, "the replica that answered has ended; ask again", "replica_lost"))

    def _emit(self, event: Any) -> None:
        if isinstance(event, Report):
            self._caches[event.replica] = event.state
            return
        self.has_begun = self.has_begun or isinstance(event, Piece)
        self._on_event(event)
