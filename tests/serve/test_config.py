"""The config file that ``serve run`` reads."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from rayzero.config import ConfigError
from rayzero.studies import sandbox
from serve import app, page
from serve.images import ImageStore
from serve.page import PageArgs
from serve.settings import AppArgs, Limits

CONFIG = Path(app.__file__).parent / "config.yaml"


def test_the_shipped_config_is_valid_and_names_the_builder() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    assert config.applications[0].import_path == "serve.app:build"
    args = AppArgs.model_validate(config.applications[0].args)
    assert args.bundles
    assert config.http_options.request_timeout_s == args.limits.request_seconds
    assert config.http_options.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"reader_seconds": 120}, "reader_wait_seconds=20 plus reader_seconds=120 must be below request_seconds=90"),
        ({"answer_seconds": 90}, "answer_seconds=90 must be below request_seconds=90"),
    ],
)
def test_no_stage_of_a_request_outlives_it(given: dict[str, float], named: str) -> None:
    with pytest.raises(ValidationError, match=f"{named}.*raise request_seconds and Serve's request_timeout_s alike"):
        AppArgs(bundles={"model": "somewhere"}, limits=given)  # type: ignore[arg-type]
    Limits(**given, request_seconds=150)  # type: ignore[arg-type]


def test_a_reader_gives_up_when_its_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[sandbox.Limits] = []

    def reader(*, workers: int, limits: sandbox.Limits) -> None:
        made.append(limits)

    monkeypatch.setattr(sandbox, "Sandbox", reader)
    limits = Limits()
    ImageStore(limits)
    assert limits.reader_wait_seconds + made[0].wall_seconds == limits.request_seconds
    assert made[0].cpu_seconds <= made[0].wall_seconds


def test_serve_can_see_the_type_of_the_arguments() -> None:
    assert inspect.signature(app.build).parameters["args"].annotation is AppArgs


def test_the_page_is_an_application_of_its_own_that_asks_over_http() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    shipped = config.applications[1]
    assert (shipped.import_path, shipped.route_prefix) == ("serve.page:build", "/ui")
    assert (
        PageArgs.model_validate(shipped.args).server == f"http://{config.http_options.host}:{config.http_options.port}"
    )
    assert inspect.signature(page.build).parameters["args"].annotation is PageArgs
    with pytest.raises(ConfigError, match="no module:function"):
        page.build(PageArgs(mount="ui.nowhere:mount"))
