"""The index job's driver on a cluster that ends its calls one by one, in order, without Ray and without waiting."""

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError
from test_actor_pool import Heard

from jobs.cluster.actor_pool import ActorSource
from jobs.cluster.nodes import TaskNeeds
from jobs.cluster.settings import RunConfig
from jobs.indexing import driver
from jobs.indexing.actor import Decoded, Device, Indexed, Refused
from jobs.indexing.driver import Driver
from jobs.indexing.metrics import Pipeline
from jobs.indexing.schedule import FINISHED_PER_ACTOR, Room
from jobs.indexing.waiting import Video
from sttm.config import IndexConfig
from sttm.corpus.listing import VideoRef
from sttm.errors import VideoError
from sttm.store.catalog.row import CatalogRow

FRAME_BYTES = 10
ROOMY = Room(decodes=4, spare_decodes=1, frame_bytes=1e9)


class Listening(Heard):
    """Knows of no GPUs."""

    def tick(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline


@dataclass(eq=False)
class Actor:
    """An actor of the cluster, with the videos that it holds by their kind."""

    holds: Counter[str] = field(default_factory=Counter)
    is_dead: bool = False


class SteppingCluster:
    """Ends one call for each look at its room, the oldest of each kind.

    Args:
        rooms: what it has room for at each look; the last one stays.
        device: what each actor says about its device.
        places: how many actors.
        decodes_per_look: how many CPU decodes end at each look.

    Attributes:
        name: what messages call its actors.
        decoded: names of videos that CPU tasks have decoded, in order.
        undecoded: names of videos that actors were given undecoded, in order.
        most_decodes, most_frame_bytes: the most that there were at a time.
        most_held: the most videos of each kind that one actor held at a time.
        fate: what indexing a decoded video, or an undecoded one, ends with, by (kind, name).
    """

    name = "Actor"

    def __init__(
        self, *rooms: Room, device: Device | None = None, places: int = 1, decodes_per_look: float = 1
    ) -> None:
        self._rooms, self._device, self._places = deque(rooms or [ROOMY]), device or Device(0), places
        self._decodes_per_look, self._decodes_due = decodes_per_look, 0.0
        self._decodes: deque[Future[Any]] = deque()
        self._prefills: deque[tuple[Actor, str, VideoRef, Future[Any]]] = deque()
        self.decoded: list[str] = []
        self.undecoded: list[str] = []
        self.most_decodes = self.most_frame_bytes = self.actors_started = self._frame_bytes = 0
        self.most_held: Counter[str] = Counter()
        self.alone: list[str] = []
        self.fate: dict[tuple[str, str], Callable[[], Any]] = {}

    def reserve(self, videos: int) -> tuple[int, ActorSource]:
        return self._places, self

    def start(self) -> tuple[Any, "Future[Any]"]:
        self.actors_started += 1
        return Actor(), ended(self._device)

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True

    def room(self, needs: TaskNeeds) -> Room:
        self._decodes_due += self._decodes_per_look
        while self._decodes and self._decodes_due >= 1:
            self._decodes_due -= 1
            self._decodes.popleft().set_result(Decoded(8, FRAME_BYTES, 1))
            self._frame_bytes += FRAME_BYTES
            self.most_frame_bytes = max(self.most_frame_bytes, self._frame_bytes)
        self._decodes_due = min(self._decodes_due, 1.0)
        if self._prefills:
            self._end_prefill(*self._prefills.popleft())
        return self._rooms.popleft() if len(self._rooms) > 1 else self._rooms[0]

    def decode(self, video: Video, needs: TaskNeeds) -> "Future[Any]":
        video.decoded = video.ref
        self.decoded.append(video.ref.name)
        self._decodes.append(Future())
        self.most_decodes = max(self.most_decodes, len(self._decodes))
        return self._decodes[-1]

    def index(self, actor: Actor, decoded: VideoRef) -> "Future[Any]":
        return self._begin(actor, "decoded", decoded)

    def decode_and_index(self, actor: Actor, video: Video) -> "Future[Any]":
        self.undecoded.append(video.ref.name)
        return self._begin(actor, "undecoded", video.ref)

    def _begin(self, actor: Actor, kind: str, ref: VideoRef) -> "Future[Any]":
        actor.holds[kind] += 1
        self.most_held[kind] = max(self.most_held[kind], actor.holds[kind])
        if actor.holds.total() == 1:
            self.alone.append(ref.name)
        self._prefills.append((actor, kind, ref, Future()))
        return self._prefills[-1][-1]

    def _end_prefill(self, actor: Actor, kind: str, ref: VideoRef, call: "Future[Any]") -> None:
        actor.holds[kind] -= 1
        self._frame_bytes -= FRAME_BYTES * (kind == "decoded")
        row = CatalogRow(ref.video_id, ref.uri, ref.name, "ok", "recipe", "key", frames=8)
        try:
            if actor.is_dead:
                raise died()
            call.set_result(self.fate.pop((kind, ref.name), lambda: Indexed(row, 1.0))())
        except Exception as error:
            call.set_exception(error)


def ended(result: Any) -> "Future[Any]":
    call: Future[Any] = Future()
    call.set_result(result)
    return call


def died() -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message="its worker process has died", actor_id=bytes(16)))


def raising(error: Exception) -> Callable[[], Any]:
    def fate() -> Any:
        raise error

    return fate


def index(cluster: SteppingCluster, videos: int, decoder: str = "auto", **run: Any) -> Listening:
    """Index videos named `0`, `1`, ..., and check that each has ended once."""
    config, heard = IndexConfig(), Listening()
    config = config.model_copy(update={"video": config.video.model_copy(update={"decoder": decoder})})
    refs = [VideoRef(f"s3://bucket/{number}", str(number), str(number), 1, "v") for number in range(videos)]
    driver = Driver(config, RunConfig(**run), {}, "store", "run", heard, cluster)
    driver.run(refs)
    assert len(heard.names) + len(heard.causes) == len({*heard.names}) + len(heard.causes) == videos
    assert heard.pipeline.places == dict.fromkeys(("queue", "decoding", "decoded", "gpu"), 0)
    return heard


def test_as_many_videos_are_decoded_at_a_time_as_the_cluster_has_room_for_and_more_once_it_grows() -> None:
    cluster = SteppingCluster()
    index(cluster, 30)
    assert cluster.most_decodes == ROOMY.decodes + ROOMY.spare_decodes
    assert cluster.decoded == [str(number) for number in range(30)]
    grows = SteppingCluster(*[ROOMY] * 10, replace(ROOMY, decodes=20))
    index(grows, 60)
    assert 20 <= grows.most_decodes <= 20 + ROOMY.spare_decodes


def test_videos_that_decode_fast_wait_in_no_great_number() -> None:
    cluster = SteppingCluster(decodes_per_look=3)
    index(cluster, 100, in_flight=3)
    assert cluster.most_frame_bytes <= FRAME_BYTES * (ROOMY.decodes + FINISHED_PER_ACTOR + 3)


@pytest.mark.parametrize("limit", [0, FRAME_BYTES, 5 * FRAME_BYTES])
def test_decoded_frames_never_take_more_bytes_than_there_is_room_for(limit: int) -> None:
    cluster = SteppingCluster(replace(ROOMY, frame_bytes=limit), decodes_per_look=3)
    index(cluster, 50)
    # Whatever the limit, one video is decoded when nothing is ahead of the three that the actor holds.
    assert cluster.most_frame_bytes <= max(limit, FRAME_BYTES * (3 + 1))


def test_an_actor_decodes_itself_only_while_cpus_do_not_keep_up() -> None:
    lagging = SteppingCluster(device=Device(2), places=2, decodes_per_look=0.25)
    index(lagging, 40)
    assert len(lagging.undecoded) > 10
    assert sorted(map(int, lagging.decoded + lagging.undecoded)) == list(range(40))
    assert lagging.most_held["undecoded"] == 2
    ahead = SteppingCluster(ROOMY, device=Device(2), decodes_per_look=4)
    index(ahead, 40)
    assert len(ahead.undecoded) < 5, "only before the first video was decoded"


def test_without_a_device_that_decodes_all_videos_are_decoded_by_cpus(capsys: pytest.CaptureFixture[str]) -> None:
    for device in (Device(0), Device(0, "libnvcuvid.so.1 is missing")):
        cluster = SteppingCluster(places=2, device=device)
        index(cluster, 5, "auto")
        assert (len(cluster.decoded), cluster.undecoded) == (5, [])
    assert capsys.readouterr().out == "videos are decoded on CPUs only: libnvcuvid.so.1 is missing\n"


@pytest.mark.parametrize(("decoder", "on_device"), [("nvdec", 20), ("pyav", 0)])
def test_the_setting_decides_whether_devices_decode_all_videos_or_none(decoder: str, on_device: int) -> None:
    cluster = SteppingCluster(device=Device(7))
    index(cluster, 20, decoder)
    assert (len(cluster.undecoded), len(cluster.decoded)) == (on_device, 20 - on_device)
    assert cluster.most_held["decoded"] <= 3
    assert cluster.most_held["undecoded"] <= 7


def test_a_video_that_the_device_refuses_is_decoded_by_a_cpu_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = SteppingCluster(device=Device(3))
    for name in ("2", "5"):
        cluster.fate["undecoded", name] = lambda: Refused("the GPU has no decoder for AV1")
    heard = index(cluster, 8, "nvdec")
    assert (cluster.decoded, heard.causes) == (["2", "5"], [])
    assert "2 videos were decoded on CPUs: the GPU has no decoder for AV1" in capsys.readouterr().out


def test_a_device_that_refuses_video_after_video_is_given_no_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_TICK_EVERY_S", 0.01)
    names = [str(number) for number in range(24)]
    cluster = SteppingCluster(device=Device(3), decodes_per_look=0.34)
    cluster.fate.update({("undecoded", name): lambda: Refused("the codec AV1") for name in names})
    heard = index(cluster, len(names), "auto")
    assert (sorted(heard.names), heard.causes) == (sorted(names), [])
    assert 8 <= len(cluster.undecoded) <= 10  # two more may be under way when the eighth is refused


def test_a_decoder_that_kills_the_actor_costs_a_model_once_and_the_video_is_decoded_by_a_cpu() -> None:
    """Videos that the dead actor held are suspects, too: each is tried again alone, decoded by a CPU."""
    cluster = SteppingCluster(device=Device(3))
    cluster.fate["undecoded", "4"] = raising(died())
    heard = index(cluster, 12, "nvdec", crash_tries=1)
    assert (cluster.actors_started, heard.causes) == (2, [])
    assert {"4"} <= {*cluster.decoded} <= {"4", "5", "6"}
    assert {*cluster.decoded} <= {*cluster.alone}


def test_a_video_that_cannot_be_used_is_an_error_row_wherever_it_is_decoded() -> None:
    cluster = SteppingCluster(device=Device(3))
    cluster.fate["undecoded", "1"] = raising(VideoError("no_frames", "s3://bucket/1: nothing to see"))
    heard = index(cluster, 4, "nvdec")
    assert (heard.causes, cluster.decoded) == (["s3://bucket/1: nothing to see"], [])


def test_videos_of_an_actor_that_was_lost_are_tried_again_without_blame() -> None:
    cluster = SteppingCluster(places=2)
    cluster.fate["decoded", "3"] = raising(ActorUnavailableError("the network", bytes(16)))
    heard = index(cluster, 12, crash_tries=1)
    assert (cluster.actors_started, heard.causes, len(heard.names)) == (3, [], 12)
