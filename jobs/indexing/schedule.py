"""Which video is decoded next, and which prefill actor gets a decoded one. Pure functions: no Ray, no clock."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from jobs.cluster.actor_pool import Work, Worker
from jobs.cluster.retry import Tries
from jobs.cluster.settings import RunConfig


class Waiting(Protocol):
    """A video that waits to be decoded."""

    tries: Tries


@dataclass(frozen=True)
class Ahead:
    """Videos between the queue and the prefill actors.

    Attributes:
        decoding: how many are being decoded.
        decoded: how many are decoded and wait for an actor.
        decoded_bytes: bytes of frames of those that wait for an actor.
    """

    decoding: int
    decoded: int
    decoded_bytes: int


WaitingType = TypeVar("WaitingType", bound=Waiting)
WorkType = TypeVar("WorkType", bound=Work)


def next_to_decode(
    waiting: Iterable[WaitingType], ahead: Ahead, actors: int, limits: RunConfig, now: float
) -> WaitingType | None:
    """The first waiting video whose back-off is over, or None if there is none or enough is decoded ahead.

    With nothing ahead one video is decoded whatever its size, so that a video larger than
    `limits.decode_ahead_bytes` is indexed too.
    """
    videos = ahead.decoding + ahead.decoded
    is_full = videos >= limits.decode_ahead * actors
    if is_full or (videos and ahead.decoded_bytes >= limits.decode_ahead_bytes):
        return None
    return next((video for video in waiting if video.tries.not_before <= now), None)


def least_busy(workers: Iterable[Worker[WorkType]], video: WorkType, in_flight: int) -> Worker[WorkType] | None:
    """The worker with the least to do of those that may be given this decoded video, or None if none may."""
    free = [worker for worker in workers if worker.takes(video, in_flight)]
    return min(free, key=lambda worker: len(worker.running), default=None)
