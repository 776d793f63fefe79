"""Every overlay builds with kubectl, and what comes out is what Kubernetes and KubeRay accept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

from rayzero.config import Config, load_config
from serve.settings import AppArgs

ROOT = Path(__file__).parents[2]
KUBECTL = Path(sys.executable).parent / "kubectl"
OVERLAYS = ROOT / "infra" / "kubernetes" / "overlays"
# KubeRay's own definitions of its resources (v1.7), which are not part of this repository.
DEFINITIONS = ROOT.parent / "shared" / "data" / "kuberay"
NAMES = sorted(path.name for path in OVERLAYS.iterdir())


@cache
def built(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run([KUBECTL, "kustomize", OVERLAYS / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def named(overlay: str, kind: str, name: str = "") -> dict[str, Any]:
    found = [
        r for r in built(overlay) if r["kind"] == kind and r["metadata"]["name"] == (name or r["metadata"]["name"])
    ]
    assert len(found) == 1, (overlay, kind, name)
    return found[0]


@cache
def ray_schema(kind: str) -> dict[str, Any]:
    """The v1 schema of a Ray resource, closed: a field that it does not know is an error, as with strict validation."""
    if not DEFINITIONS.is_dir():
        pytest.skip(f"KubeRay's definitions are not at {DEFINITIONS}: Ray resources are not validated")
    text = (DEFINITIONS / f"ray.io_{kind.lower()}s.yaml").read_text()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    versions = {each["name"]: each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"]}
    return closed(versions["v1"], top=True)


def closed(schema: Any, *, top: bool = False) -> Any:
    """``schema`` with unknown fields forbidden and Kubernetes' integers-or-strings as JSON Schema says them."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        result["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
        if top:
            result["properties"]["metadata"] = {"type": "object"}
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
        result.pop("anyOf", None)
    return result


def pod_templates(node: Any) -> Iterator[dict[str, Any]]:
    """The spec of every pod within a resource."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pod_templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_templates(value)


@pytest.mark.parametrize("overlay", NAMES)
def test_kubernetes_accepts_the_core_resources(overlay: str) -> None:
    core = [resource for resource in built(overlay) if not resource["apiVersion"].startswith("ray.io/")]
    assert {"ConfigMap", "Deployment", "NetworkPolicy"} <= {resource["kind"] for resource in core}
    for resource in core:
        kubernetes_validate.validate(resource, "1.37", strict=True)


@pytest.mark.parametrize("overlay", NAMES)
def test_kuberay_accepts_the_ray_resources(overlay: str) -> None:
    resources = [resource for resource in built(overlay) if resource["apiVersion"] == "ray.io/v1"]
    assert sorted(r["metadata"]["name"] for r in resources) == ["evaluate", "pretrain", "rayzero", "serve", "sweep"]
    for resource in resources:
        errors = [
            f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
            for error in jsonschema.Draft7Validator(ray_schema(resource["kind"])).iter_errors(resource)
        ]
        assert not errors, (resource["metadata"]["name"], errors)


def test_the_schema_check_finds_a_misspelt_field() -> None:
    resource = deepcopy(named("gpu", "RayJob", "pretrain"))
    resource["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.Draft7Validator(ray_schema("RayJob")).validate(resource)


@pytest.mark.parametrize("overlay", NAMES)
def test_jobs_and_service_run_on_the_cluster_s_own_spec(overlay: str) -> None:
    cluster = named(overlay, "RayCluster")["spec"]
    pretrain = named(overlay, "RayJob", "pretrain")["spec"]["rayClusterSpec"]
    assert pretrain == {key: value for key, value in cluster.items() if key != "gcsFaultToleranceOptions"}
    service = deepcopy(named(overlay, "RayService")["spec"]["rayClusterConfig"])
    for group in (service["headGroupSpec"], *service["workerGroupSpecs"]):
        env = group["template"]["spec"]["containers"][0]["env"]
        assert env.pop()["valueFrom"]["secretKeyRef"] == {"name": "rayzero-api", "key": "token"}
    assert service == cluster


@pytest.mark.parametrize("overlay", NAMES)
def test_every_cluster_asks_for_a_token_and_runs_the_locked_ray(overlay: str) -> None:
    for cluster in clusters(overlay):
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["rayVersion"] == version("ray")


@pytest.mark.parametrize("overlay", NAMES)
def test_pods_meet_the_restricted_standard_and_carry_no_secret(overlay: str) -> None:
    pods = list(pod_templates(built(overlay)))
    # Five clusters of a head and a worker group, three submitters, the page.
    assert len(pods) == 14
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            # An image that is not the overlay's would be pulled from somebody else's registry.
            assert container["image"] == ("rayzero:cpu" if overlay == "cpu-dev" else "rayzero:cuda")
            assert container["resources"]["limits"]["memory"]
            secret = [
                e["name"]
                for e in container.get("env", [])
                if "value" in e and ("TOKEN" in e["name"] or "KEY" in e["name"])
            ]
            assert secret in ([], ["TOKENIZERS_PARALLELISM"])
    assert not [resource for resource in built(overlay) if resource["kind"] == "Secret"]


def test_nothing_passes_the_network_but_what_is_allowed() -> None:
    allowed = policies("gpu")
    everything = allowed["nothing-else"]
    assert everything["podSelector"] == {}
    assert not {"ingress", "egress"} & set(everything)
    dashboard = [
        name
        for name, policy in allowed.items()
        for rule in policy.get("ingress", [])
        if any(port["port"] == 8265 for port in rule.get("ports", []))
    ]
    assert dashboard == ["operator-to-dashboard"]
    blocks = {
        peer["ipBlock"]["cidr"]: (peer["ipBlock"], {port["port"] for port in rule["ports"]})
        for policy in allowed.values()
        for rule in policy.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    assert set(blocks) == {"0.0.0.0/0", "169.254.20.10/32"}
    beyond, open_ports = blocks["0.0.0.0/0"]
    # TLS, and the ports of API servers: policies see what is behind the address of their service.
    assert open_ports == {443, 6443, 8443}
    # The names that a cache on each node gives, and nothing else of the link-local addresses.
    assert blocks["169.254.20.10/32"][1] == {53}
    # A pod that reaches the cloud's metadata service takes on the role of its node.
    assert beyond["except"] == ["169.254.0.0/16"]


@pytest.mark.parametrize("overlay", NAMES)
def test_encoders_of_hubs_are_read_from_the_shared_volume(overlay: str) -> None:
    assert "HF_HUB_OFFLINE=1" in (ROOT / "infra" / "images" / "Dockerfile").read_text()
    hub = Path(named(overlay, "ConfigMap", "rayzero-storage")["data"]["HF_HOME"])
    for cluster in clusters(overlay):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            shared = [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
            mounts = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] in shared]
            assert mounts == [str(hub.parent)]
            assert {"configMapRef": {"name": "rayzero-storage"}} in pod["containers"][0]["envFrom"]


def test_the_documented_fill_names_the_encoders_of_radzero() -> None:
    preset = load_config(ROOT / "jobs" / "presets" / "radzero.yaml")
    (fill,) = [line for line in (ROOT / "infra" / "README.md").read_text().splitlines() if "HF_HUB_OFFLINE=0" in line]
    assert preset.vision.encoder in fill
    assert preset.text.encoder in fill


def test_the_documented_patch_names_the_storage_class(tmp_path: Path) -> None:
    readme = (ROOT / "infra" / "README.md").read_text()
    (patches,) = re.findall(r"^```\n(patches:\n.*?)^```", readme, re.MULTILINE | re.DOTALL)
    base = os.path.relpath(OVERLAYS / "gpu", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"resources:\n  - {base}\n{patches}")
    done = subprocess.run([KUBECTL, "kustomize", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (claim,) = [r for r in yaml.safe_load_all(done.stdout) if r["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["storageClassName"] == "efs"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("overlay", NAMES)
def test_submitters_know_the_addresses_and_reach_the_dashboard(overlay: str) -> None:
    (heads,) = [policy for policy in policies(overlay).values() if ports(policy, "ingress") == {8265}]
    for name in ("pretrain", "sweep", "evaluate"):
        job = named(overlay, "RayJob", name)["spec"]
        template = job["submitterPodTemplate"]
        # Labels of KubeRay are on its Job and on none of its pods.
        label = {"matchLabels": template["metadata"]["labels"]}
        assert {"podSelector": label} in heads["ingress"][0]["from"]
        assert [p for p in policies(overlay).values() if p["podSelector"] == label and ports(p, "egress") == {8265}]
        assert template["spec"]["restartPolicy"] == "Never"
        (container,) = template["spec"]["containers"]
        # KubeRay gives its own command, which holds the entry point, and the token to a container that has no command.
        assert not {"command", "args"} & set(container)
        # Its shell expands the variables of the entry point.
        (source,) = container["envFrom"]
        known = named(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
        used = set(re.findall(r"\$(\w+)", job["entrypoint"]))
        assert used
        assert used <= set(known)


def test_spot_workers_may_go_and_the_head_may_not() -> None:
    for cluster in clusters("spot"):
        head = cluster["headGroupSpec"]["template"]["spec"]
        worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
        assert head["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
        assert worker["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
        # A cloud gives two minutes.
        assert worker["terminationGracePeriodSeconds"] < 120
    training = settings("spot", "pretrain").training
    assert training.max_failures == 50
    # With one node of two it goes on, from a checkpoint that is not long ago.
    assert training.min_workers == 1
    assert training.checkpoint_every == 200


def test_redis_keeps_the_state_of_what_outlives_its_head() -> None:
    (service,) = [named("external-redis", "RayService")["spec"]["rayClusterConfig"]]
    options = service["gcsFaultToleranceOptions"]
    assert options["backend"] == "redis"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "rayzero-redis"
    assert "gcsFaultToleranceOptions" not in named("external-redis", "RayJob", "pretrain")["spec"]["rayClusterSpec"]
    # What removes a cluster's keys, when it goes, is a pod of its own kind: without Redis, the cluster never goes.
    (kinds,) = policies("external-redis")["out-to-redis"]["podSelector"]["matchExpressions"]
    assert kinds == {"key": "ray.io/node-type", "operator": "In", "values": ["head", "redis-cleanup"]}


@pytest.mark.parametrize("overlay", ["gpu", "spot", "external-redis"])
def test_jobs_fit_the_nodes_that_are_there(overlay: str) -> None:
    """A shipped job waits for no node; what it takes of one leaves CPUs to read with."""
    group = named(overlay, "RayCluster")["spec"]["workerGroupSpecs"][0]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    cpus, gpus = (int(resources[kind][name]) for kind, name in (("requests", "cpu"), ("limits", "nvidia.com/gpu")))
    for name in ("pretrain", "sweep"):
        training = settings(overlay, name).training
        assert (training.min_workers or training.workers) * training.gpus_per_worker <= group["minReplicas"] * gpus
        # Ray Data's tasks have one each.
        assert training.cpus_per_worker <= cpus - 2
    words = named(overlay, "RayJob", "evaluate")["spec"]["entrypoint"].split()
    # With none, the head would score, which has no GPU.
    assert 1 <= int(words[words.index("--workers") + 1]) <= group["minReplicas"] * gpus


@pytest.mark.parametrize("overlay", NAMES)
def test_a_pod_s_shared_memory_holds_its_object_store(overlay: str) -> None:
    for cluster in clusters(overlay):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            memory = size(pod["containers"][0]["resources"]["limits"]["memory"])
            (shm,) = [size(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v["name"] == "shm"]
            assert DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * memory <= shm <= memory / 2


@pytest.mark.parametrize("overlay", NAMES)
def test_heads_may_scale_and_have_a_role_of_their_own(overlay: str) -> None:
    accounts = {r["metadata"]["name"]: r for r in built(overlay) if r["kind"] == "ServiceAccount"}
    assert set(accounts) == {"rayzero", "rayzero-head"}
    assert accounts["rayzero"]["automountServiceAccountToken"] is False
    for cluster in clusters(overlay):
        # Drivers on the head read lakes and write runs; its autoscaler asks the Kubernetes API.
        assert cluster["headGroupSpec"]["template"]["spec"]["serviceAccountName"] == "rayzero-head"
        for group in cluster["workerGroupSpecs"]:
            assert group["template"]["spec"]["serviceAccountName"] == "rayzero"
    assert accounts["rayzero-head"].get("automountServiceAccountToken", True)


@pytest.mark.parametrize("overlay", NAMES)
def test_nodes_get_the_time_to_start(overlay: str) -> None:
    for cluster in clusters(overlay):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            env = {e["name"]: e.get("value") for e in group["template"]["spec"]["containers"][0]["env"]}
            assert int(env[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] or 0) >= 600


@pytest.mark.parametrize("overlay", NAMES)
def test_what_pods_run_exists(overlay: str) -> None:
    """Modules, presets, settings and spaces of the jobs' commands, and the arguments of the server."""
    for name in ("pretrain", "sweep", "evaluate"):
        words = named(overlay, "RayJob", name)["spec"]["entrypoint"].split()
        assert words[:3] == ["exec", "python", "-m"]
        assert (ROOT / f"{words[3].replace('.', '/')}.py").is_file()
        options = dict(zip(words[4::2], words[5::2], strict=False))
        settings = [word for word in words[4:] if "=" in word]
        preset = ROOT / "jobs" / "presets" / f"{options.get('--preset', 'radzero')}.yaml"
        load_config(preset, settings)
        if name == "sweep":
            assert (ROOT / options["--space"]).is_file()
    config = yaml.safe_load(named(overlay, "RayService")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    limits = AppArgs(**application["args"]).limits
    assert config["http_options"]["request_timeout_s"] == limits.request_seconds
    assert application["import_path"] == "serve.app:build"


def clusters(overlay: str) -> list[dict[str, Any]]:
    """The cluster specs of an overlay: the standing one's, the jobs' and the service's."""
    jobs = [named(overlay, "RayJob", name)["spec"]["rayClusterSpec"] for name in ("pretrain", "sweep", "evaluate")]
    return [
        named(overlay, "RayCluster")["spec"],
        *jobs,
        named(overlay, "RayService")["spec"]["rayClusterConfig"],
    ]


def settings(overlay: str, job: str) -> Config:
    """The settings that a job's entry point gives its runs."""
    words = named(overlay, "RayJob", job)["spec"]["entrypoint"].split()
    preset = words[words.index("--preset") + 1] if "--preset" in words else "radzero"
    return load_config(ROOT / "jobs" / "presets" / f"{preset}.yaml", [word for word in words if "=" in word])


def size(quantity: str) -> int:
    """Bytes of a Kubernetes quantity."""
    return int(quantity[:-2]) * {"Mi": 2**20, "Gi": 2**30}[quantity[-2:]]


def policies(overlay: str) -> dict[str, dict[str, Any]]:
    """The network policies of an overlay by name."""
    return {r["metadata"]["name"]: r["spec"] for r in built(overlay) if r["kind"] == "NetworkPolicy"}


def ports(policy: dict[str, Any], direction: str) -> set[int]:
    """The ports that a policy opens to what enters or leaves."""
    return {port["port"] for rule in policy.get(direction, []) for port in rule.get("ports", [])}
