"""Actors on a real Ray that claims two GPUs: how many start, on what, and what those that cannot start hold up."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from media import encode_video

from jobs.cluster.actor_pool import ActorPool, RayActors, StartError, Worker, places_for
from jobs.cluster.calls import Calls
from jobs.cluster.settings import RunConfig
from jobs.config import JobConfig
from jobs.indexing.driver import Driver
from jobs.indexing.metrics import Pipeline
from sttm.config import index_recipe
from sttm.corpus.listing import VideoRef, list_corpus
from sttm.errors import ConfigError
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.store.catalog.row import CatalogRow
from sttm.store.store import Store
from sttm.video.decode import VideoConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def embedded_ray() -> Iterator[None]:
    """It believes what it is told, so no GPU need be there."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def two_gpus(embedded_ray: None) -> None:
    """Both free again: the actors of the test before end a little after it."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("GPU") != 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Heard:
    """Listens to a run.

    Attributes:
        names: of videos that were stored.
        causes: of those that failed.
        pipeline: the last one seen.
        gpus_taken: most GPUs taken at one time.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.causes: list[str] = []
        self.gpus_taken = 0.0

    def tick(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.gpus_taken = max(self.gpus_taken, 2 - ray.available_resources().get("GPU", 0.0))

    def decoded(self, ref: VideoRef, frames: int) -> None:
        pass

    def is_stored(self, ref: VideoRef) -> bool:
        return False

    def stored(self, ref: VideoRef, row: CatalogRow) -> None:
        self.names.append(ref.name)

    def failed(self, ref: VideoRef, code: str, message: str) -> None:
        self.causes.append(message)


@pytest.mark.parametrize(
    ("run", "places", "started", "gpus_taken"),
    [
        ({}, 2, 2, 2),
        ({"gpus": 1}, 1, 1, 1),
        ({"gpus": 3}, 3, 2, 2),  # the third waits for an autoscaler, and nobody for it
        ({"gpus_per_model": 2}, 1, 1, 2),
        ({"gpus": 0}, 1, 1, 0),
    ],
    ids=str,
)
def test_as_many_actors_index_as_there_are_gpus_for(
    two_gpus: None,
    tmp_path: Path,
    qwen2_vl_folder: Path,
    run: dict[str, int],
    places: int,
    started: int,
    gpus_taken: int,
) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(8):
        (tmp_path / "corpus" / f"{number}.mp4").write_bytes(encode_video(count=10 + number))
    model = ModelConfig(path=str(qwen2_vl_folder), dtype="float32")
    config = JobConfig(model=model, video=VideoConfig(max_frames=4), run=RunConfig(**run))
    Store.open(tmp_path / "store", create=True)
    heard = Heard()
    recipe = index_recipe(config.index, Checkpoint.open(model))
    Driver(config.index, config.run, recipe, str(tmp_path / "store"), "run", heard).run(
        list_corpus(str(tmp_path / "corpus"))
    )
    assert (sorted(heard.names), heard.causes) == ([f"{number}.mp4" for number in range(8)], [])
    assert len(heard.pipeline.ready_s) == places
    assert 1 <= sum(seconds > 0 for seconds in heard.pipeline.ready_s) <= started
    assert heard.gpus_taken == gpus_taken


def test_places_follow_from_gpus_models_and_work(two_gpus: None) -> None:
    assert places_for(10, None, 1, "run.gpus") == (2, 1)
    assert places_for(1, None, 1, "run.gpus") == (1, 1)
    assert places_for(10, 5, 2, "run.gpus") == (2, 2)
    assert places_for(10, 0, 4, "run.gpus") == (1, 0)
    with pytest.raises(ConfigError, match=r"gpus_per_model is 3, but there are 2 GPUs .* say with run.gpus how many"):
        places_for(10, None, 3, "run.gpus")
    with pytest.raises(ConfigError, match=r"gpus_per_model is 2, but there are 1 GPUs .* say with --gpus how many"):
        places_for(10, 1, 2, "--gpus")


def test_actors_that_die_at_their_start_end_a_job_in_which_none_works(two_gpus: None, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no Dies can start"):
        watch(*dying(tmp_path), lambda: died(tmp_path) == 12)


def test_actors_that_die_at_their_start_hold_up_none_that_takes_long_to_start(two_gpus: None, tmp_path: Path) -> None:
    (tmp_path / "one may live").touch()
    pool, calls = dying(tmp_path, starts_in_s=12)
    workers = watch(pool, calls, lambda: any(worker.is_ready for worker in pool.workers))
    assert sorted(worker.is_ready for worker in workers) == [False, True]
    assert died(tmp_path) > 0


def test_an_actor_that_names_a_users_error_at_its_start_ends_the_job_with_it(two_gpus: None, tmp_path: Path) -> None:
    class Refuses:
        def load(self) -> None:
            (tmp_path / f"dead-{os.getpid()}").touch()
            raise ConfigError("head_dim 7 does not divide the channels")

    with pytest.raises(StartError, match=r"^no Refuses can start: head_dim 7 does not divide the channels$"):
        watch(*pool_of(Refuses, places=1), lambda: died(tmp_path) == 2)


def pool_of(kind: type, places: int) -> tuple[ActorPool, Calls]:
    """Actors of a class, on the CPU."""
    calls = Calls()
    return ActorPool(calls, RayActors(kind, (), gpus=0, concurrency=1), places), calls


def dying(folder: Path, starts_in_s: float = 0.0) -> tuple[ActorPool, Calls]:
    """Two places for actors that die at their start, except for one if the folder says so."""

    class Dies:
        def load(self) -> None:
            try:
                (folder / "one may live").unlink()
                time.sleep(starts_in_s)
            except FileNotFoundError:
                (folder / f"dead-{os.getpid()}").touch()
                os._exit(1)

    return pool_of(Dies, places=2)


def died(folder: Path) -> int:
    return len(list(folder.glob("dead-*")))


def watch(pool: ActorPool, calls: Calls, is_over: Callable[[], bool]) -> list[Worker]:
    """Deal with what ends until it is over; the workers there are then."""
    try:
        while not is_over():
            pool.start_due()
            calls.collect(timeout_s=0.5)
        return pool.workers
    finally:
        for worker in pool.workers:
            if worker.actor is not None:
                ray.kill(worker.actor)
