"""The Ray cluster as the index job's driver sees it: room, decode tasks and prefill actors."""

import time
from concurrent.futures import Future
from typing import Any, Protocol

import ray

from jobs.cluster.actor_pool import ActorSource, RayActors, places_for
from jobs.cluster.nodes import Node, TaskNeeds, alive_nodes, tasks_at_a_time
from jobs.cluster.settings import RunConfig
from jobs.indexing.actor import PrefillActor, decode_video
from jobs.indexing.schedule import MOST_DEVICE_DECODES, DeviceDecoding, Room, device_decoding
from jobs.indexing.waiting import Video
from sttm.config import IndexConfig
from sttm.store.key import Recipe

_LOOK_EVERY_S = 2.0  # machines join and leave
_SHARE_OF_OBJECT_STORE = 0.5  # an object lies in two stores while it goes from one machine to another
_SPARE_DECODES = 1 / 8  # spare decodes for each that can run


class Cluster(Protocol):
    """Where the driver's calls run."""

    def reserve(self, videos: int) -> tuple[int, ActorSource]:
        """Decide how many actors index so many videos, and where the actors come from; called once, before all else."""

    def room(self, needs: TaskNeeds) -> Room:
        """How much the cluster takes if each decode has these needs."""

    def decode(self, video: Video, needs: TaskNeeds) -> "Future[Any]":
        """Begin to decode a video, whose attribute `decoded` gets the handle; ends with an `actor.Decoded`."""

    def index(self, actor: Any, decoded: Any) -> "Future[Any]":
        """Begin to index a decoded video; ends with an `actor.Indexed`."""

    def decode_and_index(self, actor: Any, video: Video) -> "Future[Any]":
        """Begin to decode and index a video on an actor; ends with an `actor.Indexed` or an `actor.Refused`."""


class RayCluster:
    """The cluster that this process has joined.

    Args:
        config: settings of the index.
        run: how the job runs on Ray.
        recipe: the recipe that `config` amounts to.
        store_url: URL of the store.
        run_id: name of the run.

    Attributes:
        task: the Ray task that decodes one video.
    """

    task: Any = decode_video

    def __init__(self, config: IndexConfig, run: RunConfig, recipe: Recipe, store_url: str, run_id: str) -> None:
        self._run, self._decoder = run, config.video.decoder
        self._actor_args = (config, recipe, store_url, run_id, run.prefill_timeout_s, run.decode_timeout_s)
        safe = config.model_copy(update={"video": config.video.model_copy(update={"decoder": "pyav"})})
        # Each is given to Ray once, because turning settings into bytes takes longer than asking for a decode.
        self._config, self._safe_config = ray.put(config), ray.put(safe)
        self._tasks: dict[int, Any] = {}  # by the memory that they ask for; making one takes longer than calling it
        self._cpus_of_actors = 0
        self._nodes: tuple[Node, ...] = ()
        self._looked_at = float("-inf")
        self._room_is_for: TaskNeeds | None = None
        self._room: Room

    def reserve(self, videos: int) -> tuple[int, ActorSource]:
        """Divide the GPUs of the cluster among actors, and say so.

        Raises:
            ConfigError: there are fewer GPUs than one actor needs.
        """
        run = self._run
        places, gpus = places_for(videos, run.gpus, run.gpus_per_model, "run.gpus")
        # If the actors took all CPUs, none would be left to decode the videos that the actors wait for.
        cpus = 0 if 0 < ray.cluster_resources().get("CPU", 0) <= places else 1
        self._cpus_of_actors = cpus * places
        device = f"{gpus} GPU{'s' * (gpus > 1)} each" if gpus else "on the CPU"
        print(f"loading the model: {places} worker{'s' * (places > 1)}, {device}", flush=True)
        may_decode = gpus and device_decoding(self._decoder) is not DeviceDecoding.NEVER
        concurrency = run.in_flight + (MOST_DEVICE_DECODES if may_decode else 0)
        return places, RayActors(PrefillActor, self._actor_args, gpus, concurrency, cpus)

    def room(self, needs: TaskNeeds) -> Room:
        """How much the machines take that are in the cluster now, besides the actors."""
        is_old = time.monotonic() - self._looked_at >= _LOOK_EVERY_S
        if is_old:
            self._nodes, self._looked_at = alive_nodes(), time.monotonic()
        if is_old or needs != self._room_is_for:
            self._room_is_for, self._room = needs, self._room_for(needs)
        return self._room

    def _room_for(self, needs: TaskNeeds) -> Room:
        decodes = tasks_at_a_time(self._nodes, self._cpus_of_actors, needs, _SHARE_OF_OBJECT_STORE)
        limit = self._run.decode_ahead_bytes
        stores = sum(node.object_store_bytes for node in self._nodes)
        return Room(
            decodes=decodes,
            spare_decodes=max(1, int(decodes * _SPARE_DECODES)),
            frame_bytes=_SHARE_OF_OBJECT_STORE * stores if limit is None else limit,
        )

    def decode(self, video: Video, needs: TaskNeeds) -> "Future[Any]":
        """Ask for a CPU core of any machine, in turn; a video that crashed before gets all the memory it may take."""
        largest = max((node.memory_bytes for node in self._nodes), default=0.0)
        memory = int(min(self._run.decode_memory_bytes if video.crashes else needs.memory_bytes, largest))
        if (task := self._tasks.get(memory)) is None:
            task = self._tasks[memory] = self.task.options(memory=memory, scheduling_strategy="SPREAD")
        config = self._safe_config if video.crashes else self._config
        limits = (self._run.decode_timeout_s, self._run.decode_memory_bytes)
        decoded, video.decoded = task.remote(video.ref, config, *limits)
        return decoded.future()

    def index(self, actor: Any, decoded: Any) -> "Future[Any]":
        """Call the actor; Ray carries the frames to its machine."""
        return actor.index.remote(decoded).future()

    def decode_and_index(self, actor: Any, video: Video) -> "Future[Any]":
        """Call the actor, which reads the file itself."""
        return actor.decode_and_index.remote(video.ref).future()
