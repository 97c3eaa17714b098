"""The files of infra/: checked against real schemas, real controllers' rules, and each other."""

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import (
    CRDS,
    cluster_errors,
    controller_errors,
    crd_schema,
    cron_job_schema,
    name_errors,
    schema_errors,
)
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()
needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="the CRDs of KubeRay are not beside this repository")


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((INFRA / "kuberay" / f"{name}.yaml").read_text())


def ray_job() -> dict[str, Any]:
    return manifest("rayjob")["spec"]


def pods() -> dict[str, dict[str, Any]]:
    """Every pod spec of the manifests, by what it is for."""
    job, cron = ray_job(), manifest("cronjob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    cluster = job["rayClusterSpec"]
    return {
        "submitter": job["submitterPodTemplate"]["spec"],
        "cron": cron,
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
    }


@needs_crds
@pytest.mark.parametrize(
    ("name", "plural"), [("rayjob", "rayjobs"), ("raycronjob", "raycronjobs"), ("raycluster", "rayclusters")]
)
def test_manifest_fits_the_schema_of_its_crd(name: str, plural: str) -> None:
    schema = crd_schema(plural)
    assert schema_errors(manifest(name), schema) == []
    wrong = manifest(name)
    wrong["spec"]["activeDeadlineSecond"] = 1
    assert "activeDeadlineSecond" in schema_errors(wrong, schema)[0]


@needs_crds
def test_cron_job_fits_the_schema_and_never_runs_twice_at_once() -> None:
    cron = manifest("cronjob")
    assert schema_errors(cron, cron_job_schema()) == []
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["container"] = []
    assert schema_errors(cron, cron_job_schema())


def test_controller_accepts_the_jobs_and_their_names() -> None:
    assert controller_errors(ray_job()) == []
    assert controller_errors(manifest("raycronjob")["spec"]["jobTemplate"]) == []
    assert cluster_errors(manifest("raycluster")["spec"]) == []
    assert name_errors(manifest("rayjob")["metadata"], 47) == []
    assert name_errors({"name": manifest("raycronjob")["metadata"]["name"] + "-" + "x" * 10}, 47) == []
    assert name_errors(manifest("raycluster")["metadata"], 53) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"entrypoint": " "}, "entrypoint"),
        ({"rayClusterSpec": None}, "must be set"),
        ({"shutdownAfterJobFinishes": True}, "exclude each other"),
        ({"ttlSecondsAfterFinished": 60}, "needs shutdownAfterJobFinishes"),
        ({"activeDeadlineSeconds": 0}, "positive"),
        ({"backoffLimit": -1}, "negative"),
        ({"submissionMode": "SidecarMode"}, "SidecarMode"),
        ({"rayClusterSpec.rayVersion": "2.51.0"}, "token authentication"),
        ({"rayClusterSpec.headGroupSpec.resources": {"CPU": "1"}}, "both rayStartParams"),
        ({"rayClusterSpec.headGroupSpec.template.spec.restartPolicy": "Always"}, "restartPolicy"),
        ({"deletionStrategy.deletionRules": [{"policy": "DeleteWorkers", "condition": {}}]}, "exactly one"),
    ],
)
def test_rules_of_the_controller_are_known_here(change: dict[str, Any], words: str) -> None:
    job = copy.deepcopy(ray_job())
    for path, value in change.items():
        *parents, last = path.split(".")
        place = job
        for key in parents:
            place = place[key]
        place[last] = value
    assert any(words in error for error in controller_errors(job)), controller_errors(job)


def test_all_manifests_describe_the_same_cluster_and_job() -> None:
    job, nightly = ray_job(), manifest("raycronjob")["spec"]["jobTemplate"]
    assert job == nightly
    assert job["rayClusterSpec"] == manifest("raycluster")["spec"]
    assert job["entrypoint"] in " ".join(pods()["cron"]["containers"][0]["args"][0].replace("\\\n", " ").split())


def test_nothing_retries_and_everything_ends() -> None:
    job, cron = ray_job(), manifest("cronjob")["spec"]["jobTemplate"]["spec"]
    assert job["backoffLimit"] == job["submitterConfig"]["backoffLimit"] == cron["backoffLimit"] == 0
    assert max(job["activeDeadlineSeconds"], cron["activeDeadlineSeconds"]) < 24 * 3600
    assert job["entrypointNumCpus"] == job["entrypointNumGpus"] == 0
    ended = [
        rule["condition"] for rule in job["deletionStrategy"]["deletionRules"] if rule["policy"] == "DeleteCluster"
    ]
    states = {condition.get("jobStatus") or condition["jobDeploymentStatus"] for condition in ended}
    assert states == {"SUCCEEDED", "FAILED", "Failed"}


def test_gpu_workers_come_and_go() -> None:
    cluster = ray_job()["rayClusterSpec"]
    group = cluster["workerGroupSpecs"][0]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert f"run.gpus={group['maxReplicas']}" in ray_job()["entrypoint"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", ["submitter", "cron", "head", "worker"])
def test_pods_are_not_root_and_ask_for_what_they_use(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:" in DOCKERFILE
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    if name in ("head", "worker"):
        shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
        assert shm["emptyDir"]["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


def test_secrets_are_named_never_written() -> None:
    assert ray_job()["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "sttm-ray-token"}
    for path in [*INFRA.rglob("*.yaml"), INFRA / "Dockerfile"]:
        for line in path.read_text().splitlines():
            value = re.search(r"^\s*(?:- )?\w*(?:SECRET|PASSWORD|TOKEN)\w*: *(.+)", line)
            assert value is None or value[1].startswith("${"), f"{path.name}: {line}"
    for pod in (pods()["head"], pods()["worker"]):
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "sttm-s3"}}]


def test_dockerfile_passes_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint, "hadolint is missing; install the test extra"
    done = subprocess.run([hadolint, INFRA / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_image_is_pinned_and_its_context_holds_what_it_copies() -> None:
    assert re.search(r"^FROM \S+:[\d.]+\S*$", DOCKERFILE, re.MULTILINE)
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()}
    ignore = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert "*" in ignore
    assert all((ROOT / source).exists() for source in copied)


def test_image_can_compile_what_triton_compiles_at_its_first_launch() -> None:
    installed = re.search(r"apt-get install .+", DOCKERFILE)
    assert installed
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(installed[0].split())


def test_image_has_every_dependency_at_a_tested_version() -> None:
    lines = [line for line in (INFRA / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {Requirement(line).name: next(iter(Requirement(line).specifier)) for line in lines}
    brought = {Requirement(line).name: Requirement(line).extras for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in project["dependencies"] + extras["s3"] + extras["serve"]]
    assert pinned.keys() == {requirement.name for requirement in wanted}
    for requirement in wanted:
        assert requirement.extras <= brought[requirement.name]
        assert pinned[requirement.name].operator == "=="
        assert pinned[requirement.name].version in requirement.specifier
    setup = dict(re.findall(r"(torch|torchvision)==([\d.]+)", (INFRA / "setup.sh").read_text()))
    assert setup == {name: pinned[name].version for name in ("torch", "torchvision")}
    assert pinned["ray"].version == ray_job()["rayClusterSpec"]["rayVersion"]


def test_compose_files_fit_the_specification_and_pin_their_images() -> None:
    files = sorted((INFRA / "compose").glob("*.yaml"))
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    compose = yaml.safe_load(files[0].read_text())
    for name, service in compose["services"].items():
        assert re.search(r":\D*\d+[.\-]\d+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert all(needed in compose["services"] for needed in service.get("depends_on", {})), name
        for mount in service.get("volumes", []):
            source = re.sub(r"\$\{CORPUS:-(.+)\}", r"\1", mount).split(":")[0]
            assert source in compose["volumes"] or (INFRA / "compose" / source).exists(), mount


def test_plain_cluster_file_is_accepted_by_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((INFRA / "ray-up.yaml").read_text())
    validate_config(prepare_config(cluster))
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


def test_monitoring_asks_for_every_metric_and_no_other() -> None:
    from jobs.indexing.metrics import METRICS

    histogram = ("_bucket", "_sum", "_count")
    kinds = {metric.series: metric.kind for metric in METRICS}
    dashboard = json.loads((INFRA / "monitoring" / "grafana-dashboard.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    alerts = (INFRA / "monitoring" / "alerts.yaml").read_text()

    def asked(text: str) -> set[str]:
        names = set(re.findall(r"\bray_\w+", text))
        for name in [name for name in names if name.endswith(histogram)]:
            names.remove(name)
            names.add(re.sub("_(bucket|sum|count)$", "", name))
        return names

    assert asked(queries) == kinds.keys()
    assert asked(alerts) <= kinds.keys()
    for rule in yaml.safe_load(alerts)["groups"][0]["rules"]:
        assert "== 0" not in rule["expr"], "a counter that never counted has no series, which is not equal to 0"
    for name, labels in re.findall(r"\b(ray_sttm_\w+)\{([^}]*)\}", queries + alerts):
        metric = next(metric for metric in METRICS if name.startswith(metric.series))
        assert set(re.findall(r"(\w+)=", labels)) <= set(metric.labels)
