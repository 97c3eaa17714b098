"""The forecast of a dry run against what indexing then really took; nothing measured gives no forecast."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from indexed import index_clips
from media import encode_video

from jobs.cluster.size import ClusterSize, cluster_size
from jobs.indexing.dry_run import print_plan
from jobs.indexing.forecast import Forecast, forecast, measured_rate
from jobs.indexing.limit import limit_of
from sttm.corpus.listing import VideoRef, list_corpus
from sttm.index_plan import Plan, make_plan
from sttm.indexer import GPU_STAGES
from sttm.store.artifact import committed
from sttm.store.key import Recipe, make_recipe
from sttm.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Store:
    """A store of four clips, beside the folder `corpus` they are in."""
    folder = tmp_path_factory.mktemp("forecast")
    return Store.open(index_clips(folder, qwen2_vl_folder, count=4))


def recipe_of(store: Store, **changes: dict[str, object]) -> Recipe:
    """The recipe of the store, with some settings changed."""
    recipe = store.manifest(committed(store.storage)[0]).recipe
    sections = {name: section for name, section in recipe.items() if name != "format_version"}
    return make_recipe(**{name: {**section, **changes.get(name, {})} for name, section in sections.items()})


def forecast_of(store: Store, recipe: Recipe, folder: Path) -> Forecast:
    rate = measured_rate(store, recipe)
    assert rate
    return forecast(list_corpus(str(folder)), store, recipe, rate, gpus_per_model=1)


def test_videos_like_those_measured_are_forecast_to_cost_the_same(store: Store) -> None:
    rows = store.catalog.rows()
    expected = forecast_of(store, recipe_of(store), Path(store.storage.url.removeprefix("file://")).parent / "corpus")
    assert expected.video_hours * 3600 == pytest.approx(sum(row.duration_s for row in rows))
    assert expected.video_hours_known == expected.video_hours
    assert expected.tokens_before == sum(row.tokens_before for row in rows)
    assert expected.tokens_after == sum(row.tokens_after for row in rows)
    assert expected.gigabytes * 1e9 == pytest.approx(sum(row.kv_bytes + row.tokens_bytes for row in rows))
    spent = sum(sum(row.timings_s.get(stage, 0.0) for stage in GPU_STAGES) for row in rows)
    assert expected.gpu_hours * 3600 == pytest.approx(spent, rel=0.9)
    assert expected.gpu_hours > 0
    assert expected.core_hours is not None
    assert expected.core_hours * 3600 == pytest.approx(sum(row.timings_s["decode_cpu"] for row in rows))


def test_core_hours_are_unknown_in_a_store_that_has_not_measured_them(store: Store) -> None:
    rate = measured_rate(store, recipe_of(store))
    assert rate
    refs = [VideoRef("s3://b/a.mp4", "a", "a.mp4", 10_000_000, "v")]
    older = forecast(refs, store, recipe_of(store), replace(rate, decode_cpu_s_per_s=None), gpus_per_model=1)
    assert older.core_hours is None
    assert older.cost.endswith(" GPU hours and an unknown number of core hours")
    assert limit_of(older, ClusterSize(16, 1), gpus_per_model=1) is None


FORECAST = Forecast(1000.0, 1000.0, 1, 1, 1.0, gpu_hours=4.0, core_hours=120.0)


def test_cost_is_said_for_a_thousand_hours_of_video() -> None:
    assert FORECAST.cost == "1,000 hours of such video cost 4 GPU hours and 120 core hours"
    assert replace(FORECAST, video_hours=500.0).cost == "1,000 hours of such video cost 8 GPU hours and 240 core hours"


@pytest.mark.parametrize(
    ("cluster", "gpus_per_model", "words"),
    [
        (
            ClusterSize(16, 1),
            1,
            "decode needs 30 cores a GPU; the cluster has 15: the CPU cores are the limit, the GPUs wait 50% of the "
            "time, and the run takes 8 hours",
        ),
        (
            ClusterSize(62, 2),
            1,
            "decode needs 30 cores a GPU; the cluster has 30: the GPUs are the limit, and the run takes 2 hours",
        ),
        (
            ClusterSize(241, 2),
            2,
            "decode needs 30 cores a GPU; the cluster has 120: the GPUs are the limit, and the run takes 2 hours",
        ),
        (ClusterSize(16, 0), 1, "None"),
    ],
)
def test_the_limit_of_a_run_is_named_with_what_it_needs_and_has(
    cluster: ClusterSize, gpus_per_model: int, words: str
) -> None:
    assert str(limit_of(FORECAST, cluster, gpus_per_model)) == words


def test_lengths_of_unknown_videos_come_from_their_size_and_the_cap_on_frames_holds(
    store: Store, tmp_path: Path
) -> None:
    rate = measured_rate(store, recipe_of(store))
    assert rate
    video = tmp_path / "long.mp4"
    video.write_bytes(bytes(round(3600 * rate.source_bytes_per_s)))
    expected = forecast_of(store, recipe_of(store), tmp_path)
    assert expected.video_hours == pytest.approx(1.0, rel=1e-3)
    assert expected.video_hours_known == 0
    assert expected.tokens_before == round(8 * rate.tokens_per_frame), "8 frames at most, however long"
    twice = forecast_of(store, recipe_of(store, video={"max_frames": 16}), tmp_path)
    assert twice.tokens_before == pytest.approx(2 * expected.tokens_before, abs=1)
    assert twice.gpu_hours == pytest.approx(2 * expected.gpu_hours)
    assert twice.gigabytes == pytest.approx(2 * expected.gigabytes)


def test_another_recipe_of_the_same_model_and_budget_is_named_and_no_other_is_used(store: Store) -> None:
    own = measured_rate(store, recipe_of(store))
    assert own
    assert (own.videos, own.device, own.differs) == (4, "cpu", ())
    near = measured_rate(store, recipe_of(store, video={"fps": 4.0}))
    assert near
    assert near.differs == ("video.fps is 2.0, asked for 4.0",)
    assert measured_rate(store, recipe_of(store, merge={"budget": 0.5})) is None
    assert measured_rate(store, recipe_of(store, model={"dtype": "bfloat16"})) is None
    assert measured_rate(store, {**recipe_of(store), "preprocess": {"most": 50176}}) is None


def test_plan_prints_any_uri_as_it_is_but_for_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    refs = [VideoRef.from_uri(uri) for uri in ("s3://b/[/x].mp4", "s3://b/[bold].mp4", "s3://u:p@b/a.mp4")]
    print_plan(Plan(refs), None, {}, gpus_per_model=1)
    out = capsys.readouterr().out
    assert all(uri in out for uri in ("s3://b/[/x].mp4", "s3://b/[bold].mp4", "s3://b/a.mp4"))


def test_the_cluster_of_a_dry_run_is_this_machine_or_unknown_if_none_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = cluster_size(None, gpus=8)
    assert found == ClusterSize(len(os.sched_getaffinity(0)), 8)
    assert cluster_size("127.0.0.1:1", gpus=8) is None


@pytest.mark.parametrize("budget", [0.4, 0.9])
def test_plan_prints_the_forecast_or_how_to_get_one(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: float
) -> None:
    (tmp_path / "new.mp4").write_bytes(encode_video())
    recipe = recipe_of(store, merge={"budget": budget})
    before = sorted(Path(store.storage.url.removeprefix("file://")).rglob("*"))
    print_plan(make_plan(list_corpus(str(tmp_path)), recipe, store, False), store, recipe, 2, ClusterSize(2, 2))
    out = capsys.readouterr().out
    said = json.loads(out.splitlines()[-1])
    assert said["to_index"] == 1
    assert sorted(Path(store.storage.url.removeprefix("file://")).rglob("*")) == before
    if budget == 0.4:
        assert said["measured_on"] == {"videos": 4, "device": "cpu", "differs": []}
        assert said["forecast"]["tokens_after"] > 0
        assert said["limit"]["cores_there"] == 0.5
        assert "decode needs " in out
        assert "measured on 4 videos of this recipe" in out
        rate = measured_rate(store, recipe)
        assert rate
        one, two = (forecast(list_corpus(str(tmp_path)), store, recipe, rate, gpus) for gpus in (1, 2))
        assert two.gpu_hours == 2 * one.gpu_hours
    else:
        assert said["forecast"] is None
        assert "index a few with --limit 3" in out
