"""A real one-node Ray cluster of its own: token, ports and folders are nobody else's."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


class RayCluster:
    """A running cluster.

    Attributes:
        client: submits jobs to it.
        address: of its dashboard.
        token: without which nothing answers.
    """

    def __init__(self, dashboard_port: int, metrics_port: int, token: str) -> None:
        self.address, self.token = f"http://127.0.0.1:{dashboard_port}", token
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        self.client = JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {token}"})

    def metrics(self) -> str:
        """What Prometheus would read now."""
        with urllib.request.urlopen(self._metrics, timeout=10) as response:
            return response.read().decode()

    def wait(self, job: str, seconds: float = 200) -> JobStatus:
        """Until the job has ended."""
        deadline = time.monotonic() + seconds
        while (status := self.client.get_job_status(job)) not in ENDED:
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.5)
        return status


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    """From `ray start --head`; ended by its own process ids, since `ray stop` would end every Ray of the machine."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: the paths of Unix sockets are limited
    gcs, dashboard, metrics, agent, grpc, env_agent = _free_ports(6)
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "metrics-export-port": metrics,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": grpc,
        "runtime-env-agent-port": env_agent,
    }
    settings = {"node-ip-address": "127.0.0.1", "num-cpus": 3, "object-store-memory": 200_000_000, "temp-dir": folder}
    options = [f"--{name}={value}" for name, value in {**ports, **settings}.items()]
    token = secrets.token_hex(32)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_metrics_report_interval_ms": "1000", "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    with (folder / "start.log").open("wb") as log:
        command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", *options]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    family = [psutil.Process(process.pid)]
    try:
        cluster = _connect(process, dashboard, metrics, token, folder)
        family += family[0].children(recursive=True)
        yield cluster
    finally:
        for member in [*family, *family[0].children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(process: "subprocess.Popen[bytes]", dashboard: int, metrics: int, token: str, folder: Path) -> RayCluster:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError, RuntimeError, OSError):
            return RayCluster(dashboard, metrics, token)
        time.sleep(1)
    raise RuntimeError((folder / "start.log").read_text())
