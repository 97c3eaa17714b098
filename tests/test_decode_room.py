"""Decodes on a real Ray cluster that a machine joins and leaves: how many at a time, where, and in how many bytes."""

import itertools
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from test_actor_pool import Heard

from jobs.cluster.actor_pool import ActorSource, RayActors
from jobs.cluster.settings import RunConfig
from jobs.indexing.actor import Decoded, Device, Indexed
from jobs.indexing.driver import Driver
from jobs.indexing.metrics import Pipeline
from jobs.indexing.ray_cluster import RayCluster
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.store.catalog.row import CatalogRow

pytestmark = pytest.mark.slow

STORE_BYTES, FRAME_BYTES = 100 << 20, 10 << 20
CORES = 2  # that decode on each of two machines


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A machine with a core for the actor and two more."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    args = {"num_cpus": CORES + 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=args)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class MeetingCluster(RayCluster):
    """Decodes by waiting until so many decodes run at a time; each begins and ends with a line in a file.

    Args:
        run: how the job runs on Ray.
        log: the file; a line has the machine and what it adds to the number of decodes that run.
        meeting: how many decodes wait for one another.
    """

    def __init__(self, run: RunConfig, log: Path, meeting: int) -> None:
        super().__init__(IndexConfig(), run, {}, "store", "run")

        def decode(ref: VideoRef, *_: object) -> tuple[Decoded, Any]:
            machine, met, deadline = ray.get_runtime_context().get_node_id(), log.parent / "met", time.monotonic() + 100
            with log.open("a") as lines:
                lines.write(f"{machine} 1\n")
            while not met.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
                if sum(int(line.split()[1]) for line in log.read_text().splitlines()) >= meeting:
                    met.touch()
            time.sleep(0.2)
            with log.open("a") as lines:
                lines.write(f"{machine} -1\n")
            return Decoded(8, FRAME_BYTES, 300 << 20), (ref, bytes(FRAME_BYTES))

        self.task = ray.remote(max_retries=0, num_returns=2)(decode)

    def reserve(self, videos: int) -> tuple[int, ActorSource]:
        class Quick:
            def load(self) -> Device:
                return Device(0, "it is a CPU")

            def index(self, decoded: tuple[VideoRef, bytes]) -> Indexed:
                ref = decoded[0]
                return Indexed(CatalogRow(ref.video_id, ref.uri, ref.name, "ok", "recipe", "key"), 0.01)

        self._cpus_of_actors = 1
        return 1, RayActors(Quick, (), gpus=0, concurrency=3)


class Watching(Heard):
    """Lets machines join once videos are decoded, and go again once some are stored."""

    def __init__(self, cluster: Cluster, machines: int) -> None:
        super().__init__()
        self._cluster, self._to_come = cluster, machines
        self._there: list[Any] = []

    def tick(self, pipeline: Pipeline) -> None:
        if self._to_come and pipeline.places["decoding"]:
            self._to_come -= 1
            self._there.append(self._cluster.add_node(num_cpus=CORES, object_store_memory=STORE_BYTES))
        if self._there and len(self.names) >= 8:
            self._cluster.remove_node(self._there.pop(), allow_graceful=False)


def decodes(log: Path) -> tuple[set[str], int]:
    """The machines that decoded, and how many decodes there were at a time at most."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return {machine for machine, _ in lines}, max(itertools.accumulate(int(change) for _, change in lines))


@pytest.mark.parametrize(
    ("limit", "joining", "at_a_time"),
    [(None, 1, 2 * CORES), (FRAME_BYTES, 0, 1)],
    ids=["cores", "bytes"],
)
def test_every_free_core_decodes_and_what_was_lost_with_a_machine_is_decoded_again(
    cluster: Cluster, tmp_path: Path, limit: int | None, joining: int, at_a_time: int
) -> None:
    run = RunConfig(crash_tries=1, decode_ahead_bytes=limit)
    log, heard = tmp_path / "decodes", Watching(cluster, joining)
    refs = [VideoRef(f"s3://bucket/{number}", str(number), str(number), 1, "v") for number in range(24)]
    Driver(IndexConfig(), run, {}, "store", "run", heard, MeetingCluster(run, log, at_a_time)).run(refs)
    assert (sorted(map(int, heard.names)), heard.causes) == ([*range(24)], [])
    machines, most = decodes(log)
    assert len(machines) == 1 + joining
    # A decode that was lost with its machine has no end in the file.
    assert at_a_time <= most <= at_a_time + joining * CORES
