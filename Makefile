# Each target makes the environment that it needs, and leaves nothing running.
#
#   make demo           see the pool work: needs no server
#   make test           all tests, with the newest Celery
#   make test-oldest    all tests, with the oldest versions that pyproject.toml allows, and
#                       without asyncpool_redis_batching (BATCHING=on: with it)
#   make lint types     ruff, mypy
#   make soak           minutes of random tasks under random faults: make soak MINUTES=2
#   make bench          the benchmarks, a quarter of an hour: see benchmarks/README.md
#   make clean          remove the environments and caches
#
# Arguments for the program behind it: make demo ARGS="--tasks 200"

# Tests run side by side: they mostly wait.
JOBS ?= 4

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
MINUTES ?= 10
# Of test-oldest: test has it on. Both ways of using Redis are tested so, in the time of one.
BATCHING ?= off

.PHONY: help demo test test-oldest lint types soak bench clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

demo: .venv/demo.done
	@.venv/bin/python -m celery asyncpool demo $(ARGS)

test: .venv/dev.done
	@tests/install_servers.sh
	.venv/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-oldest: .venv-oldest/dev.done
	@tests/install_servers.sh
	ASYNCPOOL_TEST_BATCHING=$(BATCHING) .venv-oldest/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: .venv/dev.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/dev.done
	.venv/bin/mypy

soak: .venv/dev.done
	@tests/install_servers.sh
	.venv/bin/python -m tests.soak --minutes $(MINUTES) $(ARGS)

bench: .venv/bench.done
	@tests/install_servers.sh
	.venv/bin/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-oldest .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Environments. A .done file says that its packages are installed.

.venv/pip.done .venv-oldest/pip.done: %/pip.done:
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --upgrade "pip>=25.1"  # knows --group
	@touch $@

.venv/demo.done: pyproject.toml | .venv/pip.done
	.venv/bin/python -m pip install --quiet --editable ".[demo]"
	@touch $@

.venv/dev.done: pyproject.toml | .venv/pip.done
	.venv/bin/python -m pip install --quiet --editable ".[demo,redis]" --group dev
	@touch $@

.venv/bench.done: .venv/dev.done
	.venv/bin/python -m pip install --quiet --group bench
	@touch $@

.venv-oldest/dev.done: pyproject.toml tests/oldest.py | .venv-oldest/pip.done
	.venv-oldest/bin/python tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --editable ".[demo,redis]" --group tests \
	    --constraint .venv-oldest/constraints.txt
	@touch $@
