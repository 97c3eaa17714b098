"""What the index job's driver begins next: pure functions of what waits and of what the actors hold."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cluster.nodes import Node, TaskNeeds, tasks_at_a_time
from jobs.cluster.retry import Tries
from jobs.indexing.schedule import (
    FINISHED_PER_ACTOR,
    Ahead,
    DeviceDecoding,
    ExpectedNeeds,
    LeastBusy,
    Room,
    device_decoding,
    goes_undecoded,
    may_decode,
)
from jobs.indexing.waiting import Video, WaitingVideos
from sttm.corpus.listing import VideoRef

ROOM = Room(decodes=16, spare_decodes=2, frame_bytes=1000)
NODE = Node(cpus=4, memory_bytes=16, object_store_bytes=8)


@pytest.mark.parametrize(
    ("ahead", "actors", "expected"),
    [
        (Ahead(15, 0, 0), 1, True),
        (Ahead(17, 0, 0), 1, True),  # the next one is asked for before a core is free
        (Ahead(18, 0, 0), 9, False),
        (Ahead(0, 15 + FINISHED_PER_ACTOR, 0), 1, True),
        (Ahead(0, 16 + FINISHED_PER_ACTOR, 0), 1, False),  # so many are decoded that no actor will wait
        (Ahead(0, 16 + FINISHED_PER_ACTOR, 0), 2, True),
        (Ahead(1, 1, 980), 1, True),
        (Ahead(1, 1, 981), 1, False),  # the one under way and the next one will bring 10 bytes each
    ],
)
def test_videos_are_decoded_as_far_as_cores_bytes_and_actors_go(ahead: Ahead, actors: int, expected: bool) -> None:
    assert may_decode(ahead, actors, ROOM, frame_bytes=10) == expected


def test_a_video_larger_than_the_limit_of_bytes_is_decoded_when_nothing_else_is_ahead() -> None:
    full = replace(ROOM, decodes=0, frame_bytes=0)
    assert may_decode(Ahead(0, 0, 0), 1, full, frame_bytes=10)
    assert may_decode(Ahead(0, 0, 500), 1, full, frame_bytes=10), "what the actors hold does not stop the next one"
    assert not may_decode(Ahead(1, 0, 0), 1, full, frame_bytes=10)
    assert not may_decode(Ahead(0, 1, 0), 1, full, frame_bytes=10)


@pytest.mark.parametrize(
    ("nodes", "cpus_taken", "needs", "expected"),
    [
        ([NODE], 0, TaskNeeds(1, 1), 4),
        ([NODE], 1, TaskNeeds(1, 1), 3),
        ([NODE], 0, TaskNeeds(8, 1), 2),  # memory for two
        ([NODE], 0, TaskNeeds(1, 2), 2),  # half of the object store has room for two results
        ([NODE, NODE], 1, TaskNeeds(1, 1), 7),
        ([NODE, NODE], 1, TaskNeeds(8, 1), 4),  # the actor has a core that memory left free
        ([NODE, Node(0, 99, 99)], 0, TaskNeeds(1, 1), 4),  # a machine without cores decodes nothing
        ([NODE], 9, TaskNeeds(1, 1), 0),
        ([], 0, TaskNeeds(1, 1), 0),
    ],
)
def test_a_machine_decodes_what_its_cores_memory_and_object_store_take(
    nodes: list[Node], cpus_taken: int, needs: TaskNeeds, expected: int
) -> None:
    assert tasks_at_a_time(nodes, cpus_taken, needs, share_of_object_store=0.5) == expected


def test_a_decode_is_expected_to_take_the_most_that_a_recent_one_took() -> None:
    expected = ExpectedNeeds()
    assert expected.needs.memory_bytes == 1 << 30
    expected.add(TaskNeeds(memory_bytes=(500 << 20) + 1, returned_bytes=7))
    expected.add(TaskNeeds(memory_bytes=300 << 20, returned_bytes=9))
    assert expected.needs == TaskNeeds(512 << 20, 9)
    for _ in range(100):
        expected.add(TaskNeeds(memory_bytes=1, returned_bytes=1))
    assert expected.needs == TaskNeeds(256 << 20, 1), "an outlier is forgotten"


@pytest.mark.parametrize(
    ("when", "decoded", "held", "refused", "expected"),
    [
        (DeviceDecoding.WHEN_CPUS_LAG, 0, 0, 7, True),
        (DeviceDecoding.WHEN_CPUS_LAG, 0, 0, 8, False),  # devices refuse whatever they are given
        (DeviceDecoding.WHEN_CPUS_LAG, 0, 1, 0, True),  # about to be idle
        (DeviceDecoding.WHEN_CPUS_LAG, 0, 2, 0, False),
        (DeviceDecoding.WHEN_CPUS_LAG, 1, 0, 0, False),  # a decoded one waits
        (DeviceDecoding.ALWAYS, 5, 5, 100, True),
        (DeviceDecoding.NEVER, 0, 0, 0, False),
    ],
)
def test_an_actor_decodes_itself_what_the_cpus_do_not_keep_up_with(
    when: DeviceDecoding, decoded: int, held: int, refused: int, expected: bool
) -> None:
    assert goes_undecoded(when, decoded, held, refused) == expected


def test_the_setting_says_when_devices_decode() -> None:
    assert [device_decoding(decoder) for decoder in ("nvdec", "auto", "pyav", "decord")] == [
        DeviceDecoding.ALWAYS,
        DeviceDecoding.WHEN_CPUS_LAG,
        DeviceDecoding.NEVER,
        DeviceDecoding.NEVER,
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 4))), st.integers(1, 4))
def test_the_least_busy_place_is_found_as_by_a_look_at_all(changes: list[tuple[int, int | None]], limit: int) -> None:
    """Each change sets how many videos a place holds, or removes the place."""
    found: LeastBusy[int] = LeastBusy(limit)
    held: dict[int, int] = {}
    for place, number in changes:
        held.pop(place, None)
        if number is None:
            found.remove(place)
        else:
            found.put(place, number)
            held[place] = number
        free = {place: number for place, number in held.items() if number < limit}
        assert found.first() == min(free, key=lambda place: free[place], default=None)


def test_videos_wait_in_order_and_those_that_were_tried_come_last_after_their_back_off() -> None:
    refs = [VideoRef.from_uri(f"s3://bucket/{number}.mp4") for number in range(3)]
    waiting = WaitingVideos(refs)
    first = waiting.next_new()
    assert first is not None
    assert first.ref is refs[0]
    tried = [Video(refs[0], Tries(crashes=1, not_before=11.0)), Video(refs[0], Tries(losses=1, not_before=9.0))]
    for video in tried:
        waiting.put_back_tried(video)
    waiting.put_back_refused(first)
    assert len(waiting) == 5
    assert waiting.next_for_cpu(10.0, with_new=False) is first, "a GPU cannot decode it, so only a CPU will"
    taken = [waiting.next_for_cpu(10.0) for _ in range(2)]
    assert [video and video.ref for video in taken] == refs[1:]
    assert waiting.next_new() is None
    assert [waiting.next_for_cpu(now) for now in (10.0, 10.0, 11.0, 11.0)] == [tried[1], None, tried[0], None]
    assert len(waiting) == 0
