"""The config file that ``serve run`` reads."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rayzero.config import ConfigError
from serve import app, page
from serve.page import PageArgs
from serve.settings import AppArgs

CONFIG = Path(app.__file__).parent / "config.yaml"


def test_the_shipped_config_is_valid_and_names_the_builder() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    assert config.applications[0].import_path == "serve.app:build"
    assert AppArgs.model_validate(config.applications[0].args).bundles
    assert config.http_options.host == "127.0.0.1"


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
