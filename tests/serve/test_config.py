"""The config file that ``serve run`` reads."""

from __future__ import annotations

import inspect
from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from serve import app
from serve.settings import AppArgs

CONFIG = Path(app.__file__).parent / "config.yaml"


def test_the_shipped_config_is_valid_and_names_the_builder() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    assert config.applications[0].import_path == "serve.app:build"
    assert AppArgs.model_validate(config.applications[0].args).bundles
    assert config.http_options.host == "127.0.0.1"


def test_serve_can_see_the_type_of_the_arguments() -> None:
    assert inspect.signature(app.build).parameters["args"].annotation is AppArgs
