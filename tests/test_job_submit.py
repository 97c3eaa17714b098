"""The nightly job as it is submitted: `ray start --head`, an uploaded working folder, logs, exit codes, stop."""

import json
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus
from ray_cluster import RayCluster, ray_cluster  # noqa: F401 (a fixture)
from test_faults import check_complete, copies

from jobs.indexing.metrics import METRICS

ROOT = Path(__file__).parent.parent
RUNTIME_ENV = yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text())

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def submit(cluster: RayCluster, *options: str, before: str = "") -> str:
    """Submit `python -m jobs.index` with this repository as the working folder; the submission id."""
    command = before + shlex.join([sys.executable, "-m", "jobs.index", *options])
    return cluster.client.submit_job(entrypoint=command, runtime_env={**RUNTIME_ENV, "working_dir": str(ROOT)})


def closing_summary(logs: str) -> dict[str, Any]:
    """The job's own last line; Ray may log a line of its own beside the job's at any moment."""
    own = [line for line in logs.strip().splitlines() if not re.match(r"\d{4}-\d\d-\d\d \d\d:", line)]
    return json.loads(own[-1])


def test_job_runs_from_the_uploaded_folder_and_its_metrics_are_served(
    ray_cluster: RayCluster,  # noqa: F811
    tmp_path: Path,
    qwen2_vl_folder: Path,
) -> None:
    corpus, store = copies(tmp_path / "corpus", 3), tmp_path / "store"
    (corpus / "text.mp4").write_text("not a video")
    options = ["--corpus", str(corpus), "--store", str(store), "--set", f"model.path={qwen2_vl_folder}"]
    job = submit(ray_cluster, *options, "--run-id", "night", before="pwd; ls -A; ")
    seen = ""
    deadline = time.monotonic() + 200
    while ray_cluster.client.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING):
        assert time.monotonic() < deadline
        seen += ray_cluster.metrics()
        time.sleep(1)
    logs = ray_cluster.client.get_job_logs(job)
    info = ray_cluster.client.get_job_info(job)
    assert (info.status, info.driver_exit_code) == (JobStatus.SUCCEEDED, 0), logs

    lines = logs.strip().splitlines()
    here = {path.name for path in ROOT.iterdir()}
    assert [line for line in lines if line in here] == ["configs", "jobs", "sttm"]
    assert f"{ROOT}\n" not in logs

    summary = closing_summary(logs)
    assert (summary["run_id"], summary["done"], summary["failed"]) == ("night", 3, 1)
    assert 0 <= summary["gpu_idle_share"] <= 1
    assert json.loads((store / "runs" / "night.json").read_text())["gpu_idle_share"] == summary["gpu_idle_share"]
    outcomes = [json.loads(line) for line in lines if line.startswith('{"time"')]
    assert sorted(line["status"] for line in outcomes) == ["error", "ok", "ok", "ok"]
    check_metrics(seen + ray_cluster.metrics(), summary)


def check_metrics(scraped: str, summary: dict[str, int]) -> None:
    """Every metric was served, and the counters ended where the summary did."""
    served = set(re.findall(r"^(ray_sttm_\w+)\{", scraped, re.MULTILINE))
    series = {metric.series + ("_bucket" if metric.kind == "histogram" else "") for metric in METRICS}
    assert series <= served

    def highest(pattern: str) -> float:
        return max(float(value) for value in re.findall(rf"^{pattern} (\S+)$", scraped, re.MULTILINE))

    assert highest(r'ray_sttm_videos_total\{.*outcome="stored".*\}') == summary["done"]
    assert highest(r'ray_sttm_failures_total\{.*code="not_a_video".*\}') == summary["failed"]
    assert highest(r"ray_sttm_bytes_written_total\{.*\}") == summary["bytes_written"]


def test_user_error_is_the_exit_code_and_the_last_words(ray_cluster: RayCluster) -> None:  # noqa: F811
    job = submit(ray_cluster, "--corpus", "/nowhere/at/all", "--store", "/nowhere/store")
    assert ray_cluster.wait(job) == JobStatus.FAILED
    assert ray_cluster.client.get_job_info(job).driver_exit_code == 1
    last = ray_cluster.client.get_job_logs(job).strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "/nowhere/at/all" in last


def test_stop_drains_and_everything_finished_is_committed(
    ray_cluster: RayCluster,  # noqa: F811
    tmp_path: Path,
    qwen2_vl_folder: Path,
) -> None:
    corpus, store = copies(tmp_path / "corpus", 40), tmp_path / "store"
    options = ["--corpus", str(corpus), "--store", str(store), "--set", f"model.path={qwen2_vl_folder}"]
    job = submit(ray_cluster, *options, "--run-id", "stopped")
    deadline = time.monotonic() + 200
    while len(list(store.glob("commit/*/*.json"))) < 2:
        assert ray_cluster.client.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ray_cluster.client.stop_job(job)
    assert ray_cluster.wait(job) == JobStatus.STOPPED
    summary = closing_summary(ray_cluster.client.get_job_logs(job))
    assert 2 <= summary["done"] < 40
    assert summary["left"] == 40 - summary["done"]
    assert json.loads((store / "runs" / "stopped.json").read_text())["status"] == "stopped"
    check_complete(store, summary["done"])


def test_a_node_that_is_taken_away_costs_no_video_a_try(
    ray_cluster: RayCluster,  # noqa: F811
    tmp_path: Path,
    qwen2_vl_folder: Path,
) -> None:
    """The only node with a GPU (Ray believes it) gets SIGTERM while its actor works, and another one comes."""
    corpus, store = copies(tmp_path / "corpus", 24), tmp_path / "store"
    settings = [f"model.path={qwen2_vl_folder}", "run.gpus=1", "run.crash_tries=1"]
    options = [part for setting in settings for part in ("--set", setting)]
    job = submit(ray_cluster, "--corpus", str(corpus), "--store", str(store), *options)
    with ray_cluster.node(**{"num-cpus": 1, "num-gpus": 1}) as node:
        deadline = time.monotonic() + 200
        while len(list(store.glob("commit/*/*.json"))) < 2:
            is_going = ray_cluster.client.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING)
            assert is_going, ray_cluster.client.get_job_logs(job)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        node.terminate()
        node.wait()
    with ray_cluster.node(**{"num-cpus": 1, "num-gpus": 1}):
        assert ray_cluster.wait(job) == JobStatus.SUCCEEDED, ray_cluster.client.get_job_logs(job)
    summary = closing_summary(ray_cluster.client.get_job_logs(job))
    assert (summary["done"] + summary["skipped"], summary["failed"]) == (24, 0)
    check_complete(store, 24)


def test_stopped_job_has_more_than_the_three_seconds_of_ray(ray_cluster: RayCluster) -> None:  # noqa: F811
    slow = "trap 'sleep 6; echo drained; exit' TERM; echo started; while true; do sleep 0.2; done"
    environment = {"env_vars": RUNTIME_ENV["env_vars"]}
    job = ray_cluster.client.submit_job(entrypoint=f"bash -c {shlex.quote(slow)}", runtime_env=environment)
    deadline = time.monotonic() + 100
    while "started" not in ray_cluster.client.get_job_logs(job).splitlines():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ray_cluster.client.stop_job(job)
    assert ray_cluster.wait(job) == JobStatus.STOPPED
    assert "drained" in ray_cluster.client.get_job_logs(job).splitlines()


def test_cluster_answers_nobody_without_the_token(ray_cluster: RayCluster) -> None:  # noqa: F811
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{ray_cluster.address}/api/jobs/", timeout=10)
    assert refused.value.code == 401
