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


@promtool
@pytest.mark.parametrize("cluster", ["", ', ray_io_cluster="a"'], ids=["local", "kubernetes"])
def test_the_alert_of_nodes_fires_for_one_that_is_lost_and_for_no_job_that_ends(tmp_path: Path, cluster: str) -> None:
    """The head answers for 30 minutes. One worker fails to answer at 5; one is no target any more from 5 on."""
    other = ', ray_io_cluster="b"'
    series = {
        f'up{{instance="head"{cluster}}}': "1x30",
        f'up{{instance="silent"{cluster}}}': "1x4 0x24",
        f'up{{instance="lost"{cluster}}}': "1x4 stale _x24",
        # A job's cluster, which ended.
        f'up{{instance="job-head"{other}}}': "1x4 stale _x24",
        f'up{{instance="job-worker"{other}}}': "1x4 stale _x24",
    }

    def alerts(*instances: str) -> list[dict[str, Any]]:
        own = {"ray_io_cluster": "a"} if cluster else {}
        summary = "{} is gone or does not answer Prometheus"
        return [
            {
                "exp_labels": {"severity": "warning", "instance": one, **own},
                "exp_annotations": {"summary": summary.format(one)},
            }
            for one in instances
        ]

    test = {
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": "4m", "alertname": "NodeDoesNotAnswer", "exp_alerts": []},
                    {"eval_time": "8m", "alertname": "NodeDoesNotAnswer", "exp_alerts": alerts("silent", "lost")},
                    {"eval_time": "25m", "alertname": "NodeDoesNotAnswer", "exp_alerts": alerts("silent")},
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
