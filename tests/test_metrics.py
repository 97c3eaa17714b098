"""What the driver tells Prometheus and the log, without a cluster."""

import json

import pytest

from jobs.indexing.metrics import METRICS, IdleClock, Pipeline
from jobs.indexing.video_log import log_video
from sttm.store.catalog.row import CatalogRow


def test_idle_is_what_an_actor_was_ready_without_work_for_its_gpu() -> None:
    clock = IdleClock()
    for is_ready, now in [(False, 5.0), (True, 10.0), (True, 12.0), (False, 18.0), (True, 30.0), (True, 32.0)]:
        clock.observe(is_ready, now)
    assert clock.idle_s == clock.ready_s == 8 + 2
    clock.worked(3.0)
    clock.worked(4.5)
    assert (clock.ready_s, clock.idle_s) == (10, 2.5)


def test_idle_share_is_over_all_actors_and_unknown_before_one_was_ready() -> None:
    assert Pipeline({}, (0.0, 10.0), (0.0, 4.0)).gpu_idle_share == 0.4
    assert Pipeline({}, (0.0, 0.0), (0.0, 0.0)).gpu_idle_share is None


def test_counters_are_named_as_prometheus_has_them() -> None:
    series = {metric.name: metric.series for metric in METRICS}
    assert series["sttm_videos"] == "ray_sttm_videos_total"
    assert series["sttm_gpu_idle_share"] == "ray_sttm_gpu_idle_share"
    assert len(series) == len(METRICS)


@pytest.mark.parametrize("status", ["ok", "error"])
def test_log_has_one_json_line_a_video(status: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = CatalogRow(
        video_id="a",
        uri="s3://user:secret@b/a.mp4",
        name="a.mp4",
        status=status,  # type: ignore[arg-type]
        recipe_digest="r",
        source_key="k",
        identity="i",
        timings_s={"decode": 0.5},
        error_code="truncated",
        run_id="night",
    )
    log_video(row)
    out, err = capsys.readouterr()
    line = json.loads(err)
    assert out == ""
    assert err.count("\n") == 1
    assert (line["event"], line["uri"], line["run_id"]) == ("video", "s3://b/a.mp4", "night")
    assert line.get("seconds") == ({"decode": 0.5} if status == "ok" else None)
    assert line.get("code") == (None if status == "ok" else "truncated")
