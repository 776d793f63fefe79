"""Ray accepts the cluster-launcher files, filled up with its own defaults as `ray up` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

LAUNCHER = Path(__file__).parents[2] / "infra" / "launcher"
FILES = sorted(LAUNCHER.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_accepts_the_file(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # For machines that are there, Ray keeps a lock and their states in its session.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    validate_config(prepare_config(read(path)))


def test_the_check_finds_a_misspelt_field() -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config({**read(LAUNCHER / "aws.yaml"), "max_worker": 3}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_on_the_head(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"] == {"/home/rayzero/.ray/auth_token": "~/.ray/auth_token"}
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_on_aws_only_ssh_enters_and_disks_are_encrypted() -> None:
    config = read(LAUNCHER / "aws.yaml")
    (rule,) = config["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    for node in config["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_containers_get_the_gpus_and_the_encoders_of_hubs(path: Path) -> None:
    options = read(path)["docker"]["run_options"]
    # The NVIDIA runtime reads these in the environment; the image, which is not one of NVIDIA's, does not set them.
    assert {"--env NVIDIA_VISIBLE_DEVICES=all", "--env NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(options)
    # The image asks no hub: either it may, or what was fetched lies where every machine sees it.
    shared = {"--volume /shared:/shared", "--env HF_HOME=/shared/hub"} <= set(options)
    assert shared != ("--env HF_HUB_OFFLINE=0" in options)


def test_on_aws_the_head_alone_may_start_machines_and_one_worker_stays() -> None:
    config = read(LAUNCHER / "aws.yaml")
    before = (LAUNCHER / "aws.yaml").read_text().split("cluster_name:")[0]
    profiles = {name: t["node_config"]["IamInstanceProfile"]["Name"] for name, t in nodes(config).items()}
    assert profiles == {"head": "rayzero-head", "gpu": "rayzero", "gpu-spot": "rayzero"}
    assert all(f"`{profile}`" in before for profile in profiles.values())
    assert all(right in before for right in ("ec2:RunInstances", "ec2:TerminateInstances", "iam:PassRole"))
    assert nodes(config)["gpu"]["min_workers"] == 1


def nodes(config: dict[str, Any]) -> dict[str, Any]:
    """The node types of a file by name."""
    types: dict[str, Any] = config["available_node_types"]
    return types
