"""The steady state of an index job, taken from the times at which videos were finished."""

from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.benchmark.steady_state import PipelineError, steady_state


def rows(*times: float) -> list[tuple[float, Any]]:
    timings = {"decode": 4.0, "encode": 0.2, "prefill": 0.1, "digest": 9.0}
    return [(at, SimpleNamespace(timings_s=timings)) for at in times]


def test_it_begins_after_the_videos_that_the_ready_actors_hold_first() -> None:
    found = steady_state(10.0, inf, rows(5, 11, 12, 13, 15, 17), held=2)
    assert (len(found.rows), found.seconds, found.videos_per_s) == (3, 5.0, 0.6)
    assert found.gpu_s == pytest.approx(0.9)
    assert found.decode_s == 4.0


def test_what_was_decoded_while_models_loaded_does_not_count() -> None:
    """Four videos waited when the actor was ready; from then on each took as long as decoding it."""
    found = steady_state(10.0, 14.5, rows(11, 12, 13, 14, 24, 34, 44), held=2)
    assert (len(found.rows), found.videos_per_s) == (3, 0.1)


def test_a_run_that_ended_before_is_an_error() -> None:
    for times in ((), (5, 6, 7), (5, 11, 12)):
        with pytest.raises(PipelineError, match="raise --seconds"):
            steady_state(10.0, inf, rows(*times), held=2)
