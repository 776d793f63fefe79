"""Dashboards, alerts and scrape settings as files; that their metrics exist is tested on a live cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is missing"
)


def check(kind: str, path: Path) -> str:
    done = subprocess.run(["promtool", "check", *kind.split(), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == f"rayzero-{path.stem}"
    assert board["schemaVersion"] >= 36
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    known = {variable["name"] for variable in board["templating"]["list"]}
    for panel in panels:
        # Somebody else's Grafana knows our data source by another id.
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["description"]
        for target in panel["targets"]:
            used = {name for name in ("run", "deployment") if f"${name}" in target["expr"]}
            assert used <= known
    assert len(cells(panels)) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in panels), "panels overlap"
    assert max(x for x, _ in cells(panels)) < 24


def cells(panels: list[dict[str, Any]]) -> set[tuple[int, int]]:
    return {
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    }


def test_there_is_a_dashboard_for_each_room() -> None:
    assert [path.stem for path in DASHBOARDS] == ["cluster", "serving", "training"]


@promtool
def test_prometheus_accepts_the_rules_and_the_local_settings() -> None:
    assert "7 rules found" in check("rules", MONITORING / "alerts.yaml")
    check("config --syntax-only", MONITORING / "prometheus-local.yaml")


@promtool
def test_prometheus_accepts_the_settings_for_kubernetes(tmp_path: Path) -> None:
    config = yaml.safe_load((MONITORING / "prometheus-kubernetes.yaml").read_text())
    (scrape,) = config["scrape_configs"]
    # Debian builds Prometheus without Kubernetes: all but this section is checked with it.
    (discovery,) = scrape.pop("kubernetes_sd_configs")
    assert discovery == {"role": "pod", "namespaces": {"names": ["rayzero"]}}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    check("config --syntax-only", tmp_path / "prometheus.yaml")


def test_every_alert_is_in_the_failure_handbook() -> None:
    handbook = (MONITORING.parent / "README.md").read_text()
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert not [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in handbook]
