"""What the index job's driver begins next: pure functions of what waits and of what the actors hold."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cluster.actor_pool import Worker
from jobs.cluster.retry import Tries
from jobs.cluster.settings import RunConfig
from jobs.indexing.schedule import Ahead, least_busy, next_to_decode

LIMITS = RunConfig(decode_ahead=2, decode_ahead_bytes=1000)
NOTHING = Ahead(0, 0, 0)


@dataclass(eq=False)
class Video:
    tries: Tries = field(default_factory=Tries)

    @property
    def crashes(self) -> int:
        return self.tries.crashes


def worker(*running: Video, is_ready: bool = True) -> Worker[Video]:
    return Worker(0, is_ready=is_ready, running=dict(enumerate(running)))


def test_videos_are_decoded_in_order_but_for_those_that_back_off() -> None:
    waiting = [Video(Tries(crashes=1, not_before=11.0)), Video(Tries(losses=1, not_before=9.0)), Video()]
    assert next_to_decode(waiting, NOTHING, 1, LIMITS, now=10.0) is waiting[1]
    assert next_to_decode(waiting, NOTHING, 1, LIMITS, now=11.0) is waiting[0]
    assert next_to_decode(waiting[:1], NOTHING, 1, LIMITS, now=10.0) is None


@pytest.mark.parametrize(
    ("ahead", "actors", "expected"),
    [
        (Ahead(1, 0, 0), 1, True),
        (Ahead(1, 1, 0), 1, False),  # two videos ahead of each actor are enough
        (Ahead(1, 1, 0), 2, True),
        (Ahead(0, 1, 1000), 4, False),  # their bytes are enough
        (Ahead(0, 1, 999), 4, True),
    ],
)
def test_no_more_is_decoded_ahead_than_videos_and_bytes_allow(ahead: Ahead, actors: int, expected: bool) -> None:
    assert (next_to_decode([Video()], ahead, actors, LIMITS, now=0.0) is not None) == expected


def test_a_video_larger_than_the_limit_of_bytes_is_decoded_when_nothing_else_is_ahead() -> None:
    limits = RunConfig(decode_ahead=1, decode_ahead_bytes=0)
    assert next_to_decode([Video()], NOTHING, 1, limits, now=0.0) is not None
    assert next_to_decode([Video()], Ahead(1, 0, 0), 2, limits, now=0.0) is None


def test_the_least_busy_actor_that_is_ready_gets_the_video() -> None:
    workers = [worker(Video(), Video()), worker(Video()), worker(is_ready=False)]
    assert least_busy(workers, Video(), in_flight=3) is workers[1]
    assert least_busy(workers, Video(), in_flight=1) is None


crashes = st.integers(0, 2).map(lambda count: Video(Tries(crashes=count)))


@given(st.lists(st.tuples(st.lists(crashes, max_size=3), st.booleans())), crashes, st.integers(1, 4))
def test_a_video_that_killed_a_process_is_never_beside_another(
    held: list[tuple[list[Video], bool]], video: Video, in_flight: int
) -> None:
    chosen = least_busy([worker(*videos, is_ready=ready) for videos, ready in held], video, in_flight)
    if chosen is not None:
        together = [video, *chosen.running.values()]
        assert len(together) == 1 or not any(one.crashes for one in together)
        assert len(together) <= in_flight
        assert chosen.is_ready
