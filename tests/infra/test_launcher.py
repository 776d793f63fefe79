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
