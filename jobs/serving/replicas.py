"""Several replicas of the service on Ray Serve, each with a GPU; a question goes to the one that holds its video.

Requests come in through one process, as without replicas: keys, limits, streaming and draining are the same code.
Behind it Ray Serve starts, watches and replaces the replicas, and its consistent hash of the video's identity picks
one. A replica that dies loses the answers it was giving; questions of which nothing has been heard are asked again.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from jobs.cluster.faults import cause_of
from jobs.cluster.session import start_ray
from jobs.serving.chat_api import ApiError
from jobs.serving.replica import Replica, Report
from sttm.errors import ConfigError
from sttm.query.cache_tier import CacheConfig, CacheState
from sttm.query.scheduler import BusyError, ScheduleConfig
from sttm.query.ticket import Hear, Piece
from sttm.query.worker import Query

_APPLICATION, _DEPLOYMENT = "sttm", "replica"
_LOGGING: Any = {"log_level": "WARNING", "enable_access_log": False}
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_DIED = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
_TRIES, _PAUSE_S = 8, 0.25  # after a death; the pause doubles


class Replicas:
    """Starts the replicas and answers through them, see `Answerer`; `close` ends them.

    Args:
        count: replicas.
        gpus_per_model: GPUs of each; ignored where there is none.
        address: of a Ray cluster; None, and no `$RAY_ADDRESS`, starts one in this machine.
        store, model, cache, schedule: of each replica.
        drain_s: time to finish when closed.

    Attributes:
        caches: what each replica had at hand when it last ended an answer.

    Raises:
        ConfigError: this machine has fewer GPUs.
    """

    def __init__(
        self,
        count: int,
        gpus_per_model: int,
        address: str | None,
        store: str,
        model: str | None,
        cache: CacheConfig,
        schedule: ScheduleConfig,
        drain_s: float,
    ) -> None:
        self.caches: dict[str, CacheState] = {}
        self._asked: set[_Asked] = set()
        self._is_closing = False
        self._max_asked = count * (schedule.max_rows + schedule.max_waiting)
        self._ray = ExitStack()
        self._ray.enter_context(start_ray(address))
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus < count * gpus_per_model and not address:
            self._ray.close()
            raise ConfigError(
                f"--replicas {count} need {gpus_per_model} GPUs each, and this machine has {gpus}; ask for fewer"
            )
        serve.start(proxy_location="Disabled", logging_config=_LOGGING)
        deployment = serve.deployment(
            Replica,
            name=_DEPLOYMENT,
            num_replicas=count,
            ray_actor_options={"num_gpus": gpus_per_model, "num_cpus": 1} if gpus else {"num_cpus": 0},
            max_ongoing_requests=schedule.max_rows + schedule.max_waiting,
            health_check_period_s=2,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=drain_s,
            request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
            logging_config=_LOGGING,
        )
        application = deployment.bind(store, model, cache, schedule)
        self._handle = serve.run(application, name=_APPLICATION, route_prefix=None)
        self._handle.ready.remote().result(timeout_s=60)  # the first call sets the router up

    @property
    def running(self) -> int:
        return sum(asked.is_begun for asked in self._asked)

    @property
    def waiting(self) -> int:
        return len(self._asked) - self.running

    @property
    def is_alive(self) -> bool:
        """Whether any replica is up; those that are not are being replaced."""
        status = serve.status().applications[_APPLICATION].deployments[_DEPLOYMENT]
        return status.replica_states.get("RUNNING", 0) > 0

    def submit(self, identity: str, query: Query, hear: Hear, options: Sequence[str] = ()) -> "_Asked":
        """Ask about a video, from an event loop; arguments and errors as for `Scheduler.submit`."""
        if self._is_closing or len(self._asked) >= self._max_asked:
            raise BusyError(f"{len(self._asked)} questions are waiting; ask again later")
        # Without an identity of its own a pair of videos goes where its first video is.
        to = self._handle.options(session_id=identity.partition("+")[0], stream=True)
        asked = _Asked(lambda: to.answer.remote(identity, query, tuple(options)), hear, self.caches)
        self._asked.add(asked)
        asked.task.add_done_callback(lambda _: self._asked.discard(asked))
        return asked

    def close(self) -> None:
        """End the replicas; the server has waited for the answers already."""
        self._is_closing = True
        serve.shutdown()
        self._ray.close()


class _Asked:
    """One question at some replica."""

    def __init__(self, ask: Any, hear: Hear, caches: dict[str, CacheState]) -> None:
        self._ask, self._hear, self._caches, self.is_begun = ask, hear, caches, False
        self.task = asyncio.get_running_loop().create_task(self._relay())

    def cancel(self) -> None:
        self.task.cancel()

    async def _relay(self) -> None:
        for number in range(_TRIES):
            stream = self._ask()
            try:
                async for events in stream:
                    for event in events:
                        self._tell(event)
                return
            except asyncio.CancelledError:
                stream.cancel()
                raise
            except BackPressureError as error:
                self._hear(BusyError(str(error)))
                return
            except Exception as error:
                cause = cause_of(error)
                if not isinstance(cause, _DIED):
                    self._hear(cause)
                    return
                if self.is_begun:
                    break
                await asyncio.sleep(_PAUSE_S * 2**number)
        self._hear(ApiError(503, "the replica that answered has ended; ask again", "replica_lost"))

    def _tell(self, event: Any) -> None:
        if isinstance(event, Report):
            self._caches[event.replica] = event.state
            return
        self.is_begun = self.is_begun or isinstance(event, Piece)
        self._hear(event)
