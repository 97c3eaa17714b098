"""What the driver begins next: pure functions and structures that know neither Ray nor a clock.

CPU decodes are bounded by what the cluster has room for, and frames in the object stores by bytes. Where the device of
an actor can decode, an actor may also be given a video that is not decoded yet.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Generic, TypeVar

from jobs.cluster.nodes import TaskNeeds

FINISHED_PER_ACTOR = 4  # decoded videos for each actor, on top of as many as are decoded at a time
MOST_DEVICE_DECODES = 8  # undecoded videos that an actor holds at a time: the largest GPUs have 7 or 8 decoders
_MOST_REFUSED = 8  # refusals in a row, after which devices get no more: a corpus of AV1 shall not be read twice
_ABOUT_TO_BE_IDLE = 1  # decoded videos held by an actor that will soon have nothing to do
_REMEMBERED = 32  # recent decodes by whose needs those of the next one are guessed
_FIRST_GUESS = TaskNeeds(memory_bytes=1 << 30, returned_bytes=128 << 20)  # before any decode of this run has ended
_MEMORY_STEP = 256 << 20  # few different amounts, because Ray shares processes only among tasks of equal needs


@dataclass(frozen=True)
class Room:
    """How much the cluster takes.

    Attributes:
        decodes: videos that its CPU cores and its memory can decode at a time.
        spare_decodes: further decodes to ask for, which begin as soon as a core is free. They show an autoscaler that
            more machines would be used.
        frame_bytes: bytes of decoded frames that it may hold.
    """

    decodes: int
    spare_decodes: int
    frame_bytes: float


@dataclass(frozen=True)
class Ahead:
    """Videos that are ahead of the prefill actors, and what the cluster holds of decoded frames.

    Attributes:
        decoding: how many are being decoded by CPU tasks.
        decoded: how many are decoded and wait for an actor.
        frame_bytes: bytes of frames of all videos that are decoded and not indexed yet, those of the actors included.
    """

    decoding: int
    decoded: int
    frame_bytes: int


def may_decode(ahead: Ahead, actors: int, room: Room, frame_bytes: int) -> bool:
    """Whether a CPU task shall decode one more video now.

    With nothing ahead one is decoded whatever its size, so that a video with more frames than `room.frame_bytes` is
    indexed too.

    Args:
        ahead: what is decoded already, and being decoded.
        actors: how many actors the decoded videos are for.
        room: how much the cluster takes.
        frame_bytes: bytes of decoded frames that are expected of each video that is decoded now.
    """
    videos = ahead.decoding + ahead.decoded
    if not videos:
        return True
    if ahead.decoding >= room.decodes + room.spare_decodes or videos >= room.decodes + FINISHED_PER_ACTOR * actors:
        return False
    return ahead.frame_bytes + (ahead.decoding + 1) * frame_bytes <= room.frame_bytes


class ExpectedNeeds:
    """What the next decode is expected to take: the most that one of the recent decodes took.

    Attributes:
        needs: memory of the process, and bytes of frames.
    """

    def __init__(self) -> None:
        self._recent: deque[TaskNeeds] = deque(maxlen=_REMEMBERED)
        self.needs = _FIRST_GUESS

    def add(self, needs: TaskNeeds) -> None:
        """Note what a decode has taken."""
        self._recent.append(needs)
        memory = max(map(attrgetter("memory_bytes"), self._recent))
        self.needs = TaskNeeds(
            memory_bytes=-(-memory // _MEMORY_STEP) * _MEMORY_STEP,
            returned_bytes=max(map(attrgetter("returned_bytes"), self._recent)),
        )


class DeviceDecoding(StrEnum):
    """When actors decode videos on their own devices."""

    NEVER = "never"
    WHEN_CPUS_LAG = "when CPUs lag"
    ALWAYS = "always"


def device_decoding(decoder: str) -> DeviceDecoding:
    """When actors decode, by the setting `video.decoder`."""
    return {"nvdec": DeviceDecoding.ALWAYS, "auto": DeviceDecoding.WHEN_CPUS_LAG}.get(decoder, DeviceDecoding.NEVER)


def goes_undecoded(when: DeviceDecoding, decoded: int, held: int, refused: int) -> bool:
    """Whether the actor that has the least to do shall be given a video that is not decoded yet.

    Where CPUs decode as well, they keep up as long as a decoded video waits or each actor has one more to go on with.

    Args:
        when: when actors decode.
        decoded: decoded videos that wait for an actor.
        held: decoded videos that this actor holds.
        refused: videos that devices have refused since the last one that they decoded.
    """
    if when is DeviceDecoding.WHEN_CPUS_LAG:
        return not decoded and held <= _ABOUT_TO_BE_IDLE and refused < _MOST_REFUSED
    return when is DeviceDecoding.ALWAYS


Place = TypeVar("Place")


class LeastBusy(Generic[Place]):
    """Finds the place that holds the fewest videos of one kind, without a look at all places.

    Args:
        limit: places that hold this many get no more.
    """

    def __init__(self, limit: int) -> None:
        self._by_held: list[dict[Place, None]] = [{} for _ in range(limit)]  # in order of arrival
        self._held: dict[Place, int] = {}

    def put(self, place: Place, held: int) -> None:
        """Note how many videos a place holds now."""
        self.remove(place)
        if held < len(self._by_held):
            self._held[place] = held
            self._by_held[held][place] = None

    def remove(self, place: Place) -> None:
        """Forget a place, which may get none for now."""
        if place in self._held:
            del self._by_held[self._held.pop(place)][place]

    def first(self) -> Place | None:
        """The place that holds the fewest, of several the one that has waited longest; None if none may get one."""
        return next((place for places in self._by_held for place in places), None)
