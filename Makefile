# SPDX-License-Identifier: Apache-2.0
# make dev    builds everything and starts a development proxy           the first command
# make test   builds everything and runs every test that CI runs        the second command
# make help   lists the rest

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

BUILD_PACKAGES = gcc libc6-dev libssl-dev python3-dev python3-venv
DEV_PACKAGES = softhsm2
TEST_PACKAGES = softhsm2 libnss3 libnss3-tools opensc curl openssl clang libclang-rt-14-dev valgrind postgresql
LOADTEST_PACKAGES = softhsm2 libnss3 libnss3-tools
BENCH_PACKAGES = softhsm2 libnss3 libnss3-tools wrk nginx-light postgresql

# They keep to a schedule, so nothing runs beside them.
TIMED = tests/faults tests/loadtests tests/bench

.PHONY: help build dev test lint format bench loadtest sanitize fuzz soak lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

# Debian packages: installed when we may, else the exact line to type. $(call need,PACKAGES,what for)
define need
	@missing=""; for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q "install ok installed" || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo"; else \
	    echo "$(2) needs Debian packages. Type:  sudo apt-get install --no-install-recommends$$missing"; exit 1; fi; \
	  echo "installing$$missing"; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
endef

build: $(VENV)/installed ## .venv with the package installed, native parts compiled
	@$(BIN)/python setup.py -q build_ext --inplace >/dev/null
	@$(BIN)/python -m compileall -q xksfast

$(VENV)/installed: requirements.lock pyproject.toml setup.py
	$(call need,$(BUILD_PACKAGES),make build)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/installed-dev: requirements-dev.lock $(VENV)/installed
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

dev: build ## a development proxy with keys in SoftHSM2, on 127.0.0.1
	$(call need,$(DEV_PACKAGES),make dev)
	@exec $(BIN)/xksfast dev

test: build $(VENV)/installed-dev ## every test that CI runs: C first, then pytest; JOBS=2 at a time
	$(call need,$(TEST_PACKAGES),make test)
	@$(MAKE) -s -C csrc test constant-time
	@$(BIN)/python -m pytest -q $(TIMED)
	@$(BIN)/python -m pytest -q -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder $(TIMED:%=--ignore=%)

lint: build $(VENV)/installed-dev ## format, types, layering, C warnings under gcc and clang
	$(call need,$(TEST_PACKAGES),make lint)
	@$(BIN)/ruff format --check xksfast tests bench loadtests setup.py
	@$(BIN)/ruff check xksfast tests bench loadtests setup.py
	@$(BIN)/mypy xksfast
	@$(BIN)/lint-imports
	@$(MAKE) -s -C csrc warnings

format: $(VENV)/installed-dev ## rewrite Python in the project's format
	@$(BIN)/ruff format xksfast tests bench loadtests setup.py
	@$(BIN)/ruff check --fix xksfast tests bench loadtests setup.py

bench: build $(VENV)/installed-dev ## all benchmarks, some 40 minutes: bench/results/*.json, docs/performance.md, docs/pictures/
	$(call need,$(BENCH_PACKAGES),make bench)
	@$(BIN)/python -m bench

loadtest: build $(VENV)/installed-dev ## PROFILE=steady|ramp|spike|soak|partition-failure RPS= DURATION= GENERATOR=locust|open-loop ARGS=
	$(call need,$(LOADTEST_PACKAGES),make loadtest)
	@$(BIN)/python -m loadtests --profile $(or $(PROFILE),steady) $(if $(RPS),--rps $(RPS)) $(if $(DURATION),--duration $(DURATION)) \
	  $(if $(GENERATOR),--generator $(GENERATOR)) $(ARGS)

sanitize: ## the C tests under ASan + UBSan and under TSan
	$(call need,$(TEST_PACKAGES),make sanitize)
	@$(MAKE) -s -C csrc test CC=gcc SANITIZE=address,undefined
	@$(MAKE) -s -C csrc test CC=gcc SANITIZE=thread

fuzz: ## every fuzzer, FUZZ_SECONDS each (60)
	$(call need,$(TEST_PACKAGES),make fuzz)
	@$(MAKE) -s -C csrc fuzz FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60)

soak: build $(VENV)/installed-dev ## random operations while processes are killed, KILL_SECONDS (600) on each database; KILL_SEED=; RESETS (10000) of a module
	$(call need,$(TEST_PACKAGES),make soak)
	@KILL_SECONDS=$(or $(KILL_SECONDS),600) KILL_SEED=$(or $(KILL_SEED),$(shell date +%s)) \
	  $(BIN)/python -m pytest -q tests/scenario/test_kill_machine.py
	@$(MAKE) -s -C csrc numbers RESETS=$(or $(RESETS),10000)

lock: $(VENV)/installed-dev ## resolve the dependencies of pyproject.toml anew
	@$(BIN)/pip-compile -q --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-header \
	  --all-build-deps -o requirements.lock pyproject.toml
	@$(BIN)/pip-compile -q --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-header \
	  --all-build-deps --extra dev -o requirements-dev.lock pyproject.toml

clean: ## everything that was built
	@rm -rf build $(VENV) bench/results loadtests/results xksfast.egg-info
	@find xksfast -name '*.so' -delete
