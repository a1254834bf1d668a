# Thin targets; each sets up what it needs in the project's virtual environment.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RPC := shared/rpc/teacher/v1/teacher_pb2.py
TEACHER ?= runs/demo/teacher.safetensors
LISTEN ?= 127.0.0.1:50051
METRICS ?= 127.0.0.1:9464
STORE ?= runs/demo/store
OUT ?= runs/train
MINUTES ?= 30
BUF := npx --yes @bufbuild/buf@1.75.0
GPU_OUT ?= runs/gpu
GPU_SECONDS ?= 470
# Tests reach into modules (`module.time`), call what has no types, and write `[f(x) for x in xs]` for what returns nothing.
TYPE_TESTS := MYPYPATH=tests $(BIN)/mypy --cache-dir .mypy_cache/tests --implicit-reexport --allow-untyped-calls \
  --no-warn-unused-ignores --no-warn-return-any --disable-error-code func-returns-value
FUZZ_SECONDS = $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),60)

.DEFAULT_GOAL := help
.PHONY: help setup proto demo test test-fast chaos soak fuzz audit lint format type buf buf-release dashboards serve train bench \
  test-images bench-peers gpu-check gpu-pack lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY) proto ## make .venv with the locked dependencies (VERIFY=1: only files whose hashes are known)

$(READY): pyproject.toml setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + \
	  "; name another one: make setup PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(if $(VERIFY),$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.hashes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[all,dev]'
	@touch $@

proto: $(RPC) ## generate the gRPC code from proto/

$(RPC): proto/teacher/v1/teacher.proto | $(READY)
	$(BIN)/python setup.py --quiet build_grpc --inplace

demo: setup ## the main job on a synthetic city: prepare, pretrain, serve, train twice (a few minutes)
	$(BIN)/python -m shared.demo --out runs/demo

test: setup ## all tests
	$(BIN)/python -m pytest

test-images: setup ## build and run the images with Buildah, runc and mmdebstrap (root; downloads 2 GB; some 10 minutes)
	TEST_IMAGES=1 $(BIN)/python -m pytest tests/docker/test_docker_build.py

test-fast: setup ## the tests that start no servers and train nothing
	$(BIN)/python -m pytest -m 'not integration'

chaos: setup ## the matrix of faults, and a trainer killed and resumed 20 times (half an hour; CHAOS='--only fault=reset')
	$(BIN)/python -m tests.chaos $(CHAOS)

lint: setup ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## ruff, mending
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup ## mypy, of the tests too
	$(BIN)/mypy
	$(TYPE_TESTS) $$(find tests -name '*.py' -not -path 'tests/chaos/*')
	$(TYPE_TESTS) -p tests.chaos

buf: ## lint the wire contract, and compare it with the last release's (needs npm)
	cd proto && $(BUF) lint && $(BUF) breaking --against released.json

buf-release: ## at a release: what `make buf` compares with from now on (needs npm)
	cd proto && $(BUF) build --exclude-source-info --output released.json

dashboards: ## check Grafana's dashboards against Grafana's own types (needs npm; skipped with a notice without)
	@command -v npm >/dev/null || { echo "NOTICE: npm is not installed; the dashboards' types are not checked"; exit 0; } && \
	  cd docker/grafana/check && npm ci --ignore-scripts --no-audit --no-fund --silent && npm run --silent check

serve: setup ## the teacher daemon: make serve TEACHER=teacher.safetensors
	$(BIN)/teacher-server serve --teacher $(TEACHER) --listen $(LISTEN) --metrics-listen $(METRICS)

train: setup ## a distilled run: make train STORE=store OUT=runs/train
	$(BIN)/student-trainer train --data $(STORE) --teacher $(LISTEN) --out $(OUT)

bench: setup ## benchmarks; results in benchmarks/results
	$(BIN)/python -m benchmarks

bench-peers: setup ## environments for the servers that the section `peers` compares with (downloads some 500 MiB)
	$(BIN)/python -m benchmarks.peers.environments

gpu-check: setup ## all that an accelerator is asked to do, measured: make gpu-check STORE=store GPU_OUT=runs/gpu
	$(BIN)/python -m benchmarks.gpu --store $(STORE) --out $(GPU_OUT) --seconds $(GPU_SECONDS)

gpu-pack: setup ## what must travel to a machine with an accelerator and no network, into .gpu-pack
	$(BIN)/python -m benchmarks.gpu.pack --out .gpu-pack

soak: setup ## a daemon at full load for a long time, and what grows: make soak MINUTES=30
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

fuzz: setup ## coverage-guided fuzzing of every reader: make fuzz SECONDS=60 (of each; Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) --out .fuzz

lock: setup ## lock what pyproject.toml asks for (make lock UPGRADE='--upgrade-package grpcio')
	$(BIN)/pip-compile --quiet --extra all --extra dev --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-header --no-annotate $(UPGRADE) --output-file requirements.lock pyproject.toml
	sed -i 's/+cpu$$//; /^#/d; /^$$/d; /^lmtad-hoser-distill @/d' requirements.lock  # no local builds: it serves every machine
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	grep -v '^torch==' requirements.lock | $(BIN)/uv pip compile --quiet --no-config --no-deps --universal --generate-hashes \
	  --no-annotate --no-header --output-file requirements.hashes -  # of every platform's files; torch's builds differ

audit: setup ## known weaknesses and licences of what is locked
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python .ci/audit.py

clean: ## remove the environment, generated code and caches (runs/ stays)
	rm -rf $(VENV) shared/rpc/teacher build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
