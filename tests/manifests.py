"""What a KubeRay operator would say to a manifest: the schema of its CRD, and the rules its controller adds."""

import functools
import lzma
import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml

CRDS = Path(__file__).parent.parent.parent / "shared" / "kuberay"
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
    "additionalProperties": False,
}


@functools.cache
def crd_schema(plural: str) -> dict[str, Any]:
    """JSON schema of the served version `v1` of a `ray.io` resource; unknown fields are errors in it.

    The API server only drops them, and a misspelt deadline would be no deadline.
    """
    text = lzma.decompress((CRDS / f"ray.io_{plural}.yaml.xz").read_bytes())
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    closed = _closed(schema)
    closed["properties"]["metadata"] = METADATA
    return closed


def cron_job_schema() -> dict[str, Any]:
    """JSON schema of a `batch/v1` CronJob, as far as ours goes; its pod template is the one of a RayJob's submitter."""
    spec = crd_schema("rayjobs")["properties"]["spec"]["properties"]
    number, text = {"type": "integer", "minimum": 0}, {"type": "string"}
    job = {
        "backoffLimit": number,
        "activeDeadlineSeconds": number,
        "ttlSecondsAfterFinished": number,
        "template": spec["submitterPodTemplate"],
    }
    cron = {
        "schedule": text,
        "timeZone": text,
        "concurrencyPolicy": {"enum": ["Allow", "Forbid", "Replace"]},
        "startingDeadlineSeconds": number,
        "successfulJobsHistoryLimit": number,
        "failedJobsHistoryLimit": number,
        "jobTemplate": _closed({"type": "object", "properties": {"spec": {"type": "object", "properties": job}}}),
    }
    top = {
        "apiVersion": {"const": "batch/v1"},
        "kind": {"const": "CronJob"},
        "metadata": METADATA,
        "spec": {"type": "object", "properties": cron, "required": ["schedule", "jobTemplate"]},
    }
    return _closed({"type": "object", "properties": top})


def schema_errors(manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, each with its place."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def controller_errors(job: dict[str, Any]) -> list[str]:
    """What a RayJob's controller refuses although the schema allows it.

    Source: KubeRay, ray-operator/controllers/ray/utils/validation.go (ValidateRayJobSpec, ValidateRayClusterSpec,
    validateDeletionRules) and the CEL rules of the CRD.
    """
    cluster = job.get("rayClusterSpec") or {}
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    checks = {
        "entrypoint is empty": not job.get("entrypoint", "").strip(),
        "one of rayClusterSpec and clusterSelector must be set": bool(cluster) == bool(job.get("clusterSelector")),
        "shutdownAfterJobFinishes and deletionRules exclude each other": bool(
            rules and job.get("shutdownAfterJobFinishes")
        ),
        "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": bool(
            job.get("ttlSecondsAfterFinished") and not job.get("shutdownAfterJobFinishes")
        ),
        "activeDeadlineSeconds must be positive": job.get("activeDeadlineSeconds", 1) <= 0,
        "backoffLimit must not be negative": job.get("backoffLimit", 0) < 0,
        "SidecarMode takes no submitter template": job.get("submissionMode") == "SidecarMode"
        and ("submitterPodTemplate" in job or "submitterConfig" in job),
    }
    return [text for text, wrong in checks.items() if wrong] + _rule_errors(rules, cluster) + cluster_errors(cluster)


def _rule_errors(rules: list[dict[str, Any]], cluster: dict[str, Any]) -> list[str]:
    found, seconds = [], {}
    for rule in rules:
        condition, policy = rule["condition"], rule["policy"]
        states = [condition[key] for key in ("jobStatus", "jobDeploymentStatus") if key in condition]
        if len(states) != 1:
            found.append("a deletion rule needs exactly one of jobStatus and jobDeploymentStatus")
        if policy == "DeleteWorkers" and cluster.get("enableInTreeAutoscaling"):
            found.append("DeleteWorkers does not go with the autoscaler")
        if (tuple(states), policy) in seconds:
            found.append(f"two deletion rules for {policy} on {states}")
        seconds[tuple(states), policy] = condition.get("ttlSeconds", 0)
    for (states, policy), ttl in seconds.items():
        if policy == "DeleteCluster" and seconds.get((states, "DeleteSelf"), ttl) < ttl:
            found.append(f"on {states} the RayJob goes before its cluster")
    return found


def cluster_errors(cluster: dict[str, Any]) -> list[str]:
    """The same for a RayCluster's spec."""
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])] if cluster else []
    found = []
    for group in groups:
        pod, start = group["template"]["spec"], group.get("rayStartParams", {})
        if start.keys() & {"num-cpus", "num-gpus", "memory", "resources"} and group.get("resources"):
            found.append("resources in both rayStartParams and the group")
        if "labels" in start:
            found.append("labels belong to the group, not to rayStartParams")
        if cluster.get("enableInTreeAutoscaling") and pod.get("restartPolicy", "Never") != "Never":
            found.append("autoscaler v2 needs restartPolicy Never")
        if group.get("minReplicas", 0) > group.get("maxReplicas", 1):
            found.append("minReplicas above maxReplicas")
    token = cluster.get("authOptions", {}).get("mode") == "token"
    version = tuple(int(n) for n in re.findall(r"\d+", cluster.get("rayVersion", "0"))[:2])
    if token and version < (2, 52):
        found.append("token authentication needs rayVersion 2.52 or newer")
    return found


def name_errors(metadata: dict[str, Any], longest: int) -> list[str]:
    """A RayJob's name is cut from its cluster's, that from its services': at most 47 and 53 characters (constant.go).

    `generateName` gets five characters more.
    """
    name = metadata.get("name") or metadata["generateName"] + "x" * 5
    fits = len(name) <= longest and re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
    return [] if fits else [f"{name!r} is no DNS label of at most {longest} characters"]
