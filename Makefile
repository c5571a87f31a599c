# Winnow: the commands that the README names. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
PORT ?= 8080
HOME_DIR ?= $(HOME)/.winnow
COMPOSE ?= docker compose
CORES = $(shell $(PYTHON) -c 'import os; print(min(len(os.sched_getaffinity(0)), 3))')
TEST_PROCESSES ?= -n $$(( $(CORES) + 1 )) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-cluster test-compose test-chaos test-hostile test-schemathesis lint format test-slow bench-main bench-detection bench-badjie bench-hlihor bench-serving bench-gateway bench-endtoend bench-drift bench-papernot bench-distillation bench-scale clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

setup: $(VENV)/.ready-embedded ## install what running Winnow needs, into .venv

$(VENV)/.ready-embedded: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-embedded
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## watch Winnow do its whole job on real images
	$(BIN)/winnow demo

up: setup ## start the whole stack on this machine (PORT=8080, HOME_DIR=~/.winnow)
	$(BIN)/winnow up --home $(HOME_DIR) --port $(PORT)

test: export PYTHONDONTWRITEBYTECODE := # its many processes compile what they share once
test: $(VENV)/.ready-dev ## the fast suite: real broker, real worker, real HTTP
	$(BIN)/python -m pytest -m "not slow and not gpu and not hostile" $(TEST_PROCESSES)

test-cluster: $(VENV)/.ready-dev ## the integration tests, slow ones too, on PostgreSQL, S3 and Redis by TCP
	WINNOW_TEST_PARTS=cluster $(BIN)/python -m pytest -m "not gpu and not hostile" tests/integration

test-compose: $(VENV)/.ready-dev ## build the images, run the cluster, kill a worker (COMPOSE="docker compose")
	COMPOSE="$(COMPOSE)" $(BIN)/python -m tests.compose.run

test-chaos: $(VENV)/.ready-dev ## kill every part at random, again and again (ARGS="--quick" for 10 kills)
	$(BIN)/python -m benchmarks.chaos $(ARGS)

test-slow: $(VENV)/.ready-dev ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow"

test-gpu: $(VENV)/.ready-dev ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m "gpu"

test-hostile: $(VENV)/.ready-dev ## what an attacker, or a fuzzer, does to a running service
	$(BIN)/python -m pytest -m "hostile"

test-schemathesis: $(VENV)/.ready-dev ## every call of the OpenAPI document under a fuzzer
	$(BIN)/python -m pytest -s tests/integration/test_openapi_fuzzed.py

lint: $(VENV)/.ready-dev ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.ready-dev ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-main: $(VENV)/.ready-dev ## the main job on the whole of GTSRB (DATA=FOLDER with gtsrb.npz)
	$(BIN)/python -m benchmarks.main --data $(DATA)

bench-detection: $(VENV)/.ready-dev ## what is detected, at which rates (DATA=FOLDER, ARGS="--only labels --seeds 0")
	$(BIN)/python -m benchmarks.detection --data $(DATA) $(ARGS)

bench-badjie: $(VENV)/.ready-dev ## Badjie's filter at its thresholds, and its figures (DATA=FOLDER)
	$(BIN)/python -m benchmarks.badjie --data $(DATA) $(ARGS)

bench-hlihor: $(VENV)/.ready-dev ## Hlihor's autoencoders against Carlini-Wagner, and its figures (DATA=FOLDER)
	$(BIN)/python -m benchmarks.hlihor --data $(DATA) $(ARGS)

bench-drift: $(VENV)/.ready-dev ## the drift alarm: how often it is raised by clean traffic, how soon by perturbed
	$(BIN)/python -m benchmarks.drift $(ARGS)

bench-endtoend: $(VENV)/.ready-dev ## backdoors, attacks on the served model, foreign images, end to end (DATA=FOLDER)
	$(BIN)/python -m benchmarks.endtoend --data $(DATA) $(ARGS)

bench-papernot: $(VENV)/.ready-dev ## Papernot's defence as he tested it and as it must be (DATA=FOLDER)
	$(BIN)/python -m benchmarks.papernot --data $(DATA) $(ARGS)

bench-distillation: $(VENV)/.ready-dev ## teacher and students on GTSRB, foreign images, the fit loop (DATA=FOLDER)
	$(BIN)/python -m benchmarks.distillation --data $(DATA) $(ARGS)

bench-serving: $(VENV)/.ready-dev ## serving against bare ONNX Runtime and other servers (DATA=FOLDER, ARGS="--no-peers")
	$(BIN)/python -m benchmarks.serving --data $(DATA) $(ARGS)

bench-gateway: $(VENV)/.ready-dev ## large uploads, ingest, pages of a million verdicts (DATA=FOLDER, ARGS="--only upload")
	$(BIN)/python -m benchmarks.gateway --data $(DATA) $(ARGS)

bench-scale: $(VENV)/.ready-dev ## two workers beside one, a million images, 20,000 small jobs (ARGS="--only sharing")
	$(BIN)/python -m benchmarks.scale $(ARGS)

clean: ## remove what the other commands made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
