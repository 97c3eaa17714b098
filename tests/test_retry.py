"""The rule of retrying, which is a pure function: no cluster, no clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import exceptions as ray_errors

from jobs.cluster.faults import Fault, FaultKind, fault_of
from jobs.cluster.retry import EndRun, GiveUp, RetryLimits, Tries, TryAgain, what_next
from sttm.errors import ArtifactError, ConfigError, ModelError, StoreError, VideoError

FRESH = Tries()
LIMITS = RetryLimits(crash_tries=3, lost_tries=8)
CRASH = Fault(FaultKind.CRASH, RuntimeError("boom\nand its traceback"))
LOST = Fault(FaultKind.LOST, OSError("the bucket is away"))


def next_of(fault: Fault, tries: Tries = FRESH, **more: int) -> GiveUp | EndRun | TryAgain:
    return what_next(fault, tries, LIMITS, 100.0, name="a.mp4", **more)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (VideoError("not_a_video", "a.mp4 is no video"), FaultKind.OWN),
        (ConfigError("head_dim 7"), FaultKind.FATAL),
        (ModelError("no weight 'x'"), FaultKind.FATAL),
        (StoreError("the store is away"), FaultKind.LOST),
        (ArtifactError("a.json is damaged"), FaultKind.LOST),
        (ConnectionResetError("by the peer"), FaultKind.LOST),
        (ray_errors.GetTimeoutError("not there yet"), FaultKind.LOST),
        (ray_errors.WorkerCrashedError(), FaultKind.CRASH),
        (MemoryError("no room"), FaultKind.CRASH),
        (ZeroDivisionError("a bug in somebody's library"), FaultKind.CRASH),
    ],
    ids=repr,
)
def test_an_error_is_blamed_on_the_same_one_however_deep_ray_wrapped_it(error: Exception, kind: FaultKind) -> None:
    wrapped = ray_errors.RayTaskError("index", "traceback", ray_errors.RayTaskError("inner", "traceback", error))
    assert fault_of(error) == fault_of(wrapped) == Fault(kind, error)


def test_a_videos_own_fault_is_its_error_row_at_once() -> None:
    own = Fault(FaultKind.OWN, VideoError("not_a_video", "a.mp4 is no video"))
    assert next_of(own) == GiveUp("not_a_video", "a.mp4 is no video")


def test_wrong_settings_end_the_run_with_their_own_error() -> None:
    error = ConfigError("head_dim 7")
    assert next_of(Fault(FaultKind.FATAL, error)) == EndRun(error)


def test_a_crash_is_tried_again_until_its_last_try() -> None:
    assert next_of(CRASH) == TryAgain(Tries(crashes=1, not_before=101.0))
    assert next_of(CRASH, Tries(crashes=1)) == TryAgain(Tries(crashes=2, not_before=102.0))
    assert next_of(CRASH, Tries(crashes=2)) == GiveUp("crashed", "a.mp4 crashed 3 times, last: RuntimeError: boom")


def test_a_loss_counts_as_no_crash_and_has_tries_of_its_own() -> None:
    assert next_of(LOST, Tries(crashes=2, losses=1)) == TryAgain(Tries(crashes=2, losses=2, not_before=108.0))
    assert next_of(LOST, Tries(losses=7)) == GiveUp("lost", "a.mp4 lost 8 times, last: OSError: the bucket is away")


def test_a_chunk_that_crashes_is_halved_and_its_halves_count_their_own_crashes() -> None:
    assert next_of(CRASH, Tries(crashes=2, losses=3), size=4) == TryAgain(Tries(1, 3, 130.0), in_halves=True)
    assert next_of(LOST, size=4) == TryAgain(Tries(losses=1, not_before=101.0)), "a lost machine blames no question"


def test_a_group_that_crashed_too_often_is_given_up_but_not_for_a_loss() -> None:
    expected = GiveUp("crashed", "a.mp4 crashed 16 times, last: RuntimeError: boom")
    assert next_of(CRASH, size=4, crashes_of_group=16) == expected
    assert next_of(CRASH, size=1, crashes_of_group=16) == expected
    assert isinstance(next_of(CRASH, size=4, crashes_of_group=15), TryAgain)
    assert isinstance(next_of(LOST, size=4, crashes_of_group=16), TryAgain)


def questions_tried(size: int, poisonous: set[int]) -> tuple[set[int], int]:
    """The questions given up, and how many tries it took, of a chunk that crashes where a poisonous question is in."""
    waiting, given_up, count, crashes = [(frozenset(range(size)), Tries())], set(), 0, 0
    while waiting:
        (chunk, tries), count = waiting.pop(0), count + 1
        if not chunk & poisonous:
            continue
        crashes += 1
        match next_of(CRASH, tries, size=len(chunk), crashes_of_group=crashes):
            case GiveUp():
                given_up |= chunk
            case TryAgain(tries, in_halves):
                middle = len(chunk) // 2 if in_halves else len(chunk)
                parts = (frozenset(sorted(chunk)[:middle]), frozenset(sorted(chunk)[middle:]))
                waiting += [(part, tries) for part in parts if part]
    return given_up, count


@given(st.integers(1, 256).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))))
def test_halving_finds_the_one_question_that_crashes_and_costs_no_other(chunk: tuple[int, int]) -> None:
    size, poison = chunk
    assert questions_tried(size, {poison})[0] == {poison}


@given(st.integers(1, 256), st.data())
def test_any_chunk_comes_to_an_end_and_no_innocent_half_is_tried_often(size: int, data: st.DataObject) -> None:
    poisonous = data.draw(st.sets(st.integers(0, size - 1)))
    given_up, count = questions_tried(size, poisonous)
    assert given_up >= poisonous
    assert count <= 2 * (LIMITS.group_crashes + size)


@given(st.lists(st.sampled_from([CRASH, LOST])), st.floats(0, 1e9))
def test_work_is_tried_no_sooner_after_more_faults_and_never_more_than_half_a_minute_later(
    faults: list[Fault], now: float
) -> None:
    tries, wait_s = Tries(), 0.0
    for fault in faults:
        following = what_next(fault, tries, LIMITS, now, name="a.mp4")
        if isinstance(following, GiveUp):
            break
        assert isinstance(following, TryAgain)
        assert wait_s - 1e-6 <= following.tries.not_before - now <= 30.0 + 1e-6
        tries, wait_s = following.tries, following.tries.not_before - now
    assert tries.crashes < LIMITS.crash_tries
    assert tries.losses < LIMITS.lost_tries
