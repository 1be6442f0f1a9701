# Each target makes the environment that it needs, and leaves nothing running.
#
#   make demo           see the pool work: needs no server
#   make test           all tests, with the newest Celery
#   make test-oldest    all tests, with the oldest versions that pyproject.toml allows, and
#                       without asyncpool_redis_batching (BATCHING=on: with it)
#   make test-python    all tests on another Python, found here or on Debian:
#                       make test-python VERSION=3.14
#   make test-celery    Celery's own integration tests, with this pool: BROKER=rabbitmq, and
#                       POOL=prefork to compare; SELECTION=ci takes minutes, all of them half
#                       an hour
#   make lint types     ruff, mypy
#   make soak           minutes of random tasks under random faults: make soak MINUTES=2
#   make bench          the benchmarks, a quarter of an hour: see benchmarks/README.md
#   make clean          remove the environments and caches
#
# Arguments for the program behind it: make demo ARGS="--tasks 200"
# Another interpreter, with environments of its own: make test PYTHON=python3.14

# Tests run side by side: they mostly wait.
JOBS ?= 4

DEFAULT_PYTHON := $(shell command -v python3.11 || command -v python3)
PYTHON ?= $(DEFAULT_PYTHON)
VERSION ?= 3.14
ARGS ?=
MINUTES ?= 10
# Of test-celery.
BROKER ?= redis
POOL ?= asyncpool
SELECTION ?=
# Of test-oldest: test has it on. Both ways of using Redis are tested so, in the time of one.
BATCHING ?= off

# An environment belongs to one interpreter: .venv, or .venv-3.14 of PYTHON=python3.14.
ifneq ($(PYTHON),$(DEFAULT_PYTHON))
SUFFIX := -$(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2] + sys.abiflags)")
ifeq ($(SUFFIX),-)
$(error PYTHON=$(PYTHON) does not run: name an interpreter that does)
endif
endif
# The folder in which environments are made.
ENVIRONMENTS ?= .
VENV := $(ENVIRONMENTS)/.venv$(SUFFIX)
OLDEST := $(ENVIRONMENTS)/.venv-oldest$(SUFFIX)
CELERY := $(ENVIRONMENTS)/.venv-celery$(SUFFIX)

.PHONY: help demo test test-oldest test-python test-celery lint types soak bench clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/demo.done
	@$(VENV)/bin/python -m celery asyncpool demo $(ARGS)

test: $(VENV)/dev.done
	@tests/install_servers.sh
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-oldest: $(OLDEST)/dev.done
	@tests/install_servers.sh
	ASYNCPOOL_TEST_BATCHING=$(BATCHING) $(OLDEST)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-python:
	@tests/python.sh $(VERSION)

test-celery: $(CELERY)/celery.done
	@tests/install_servers.sh
	$(CELERY)/bin/python -m tests.upstream --broker $(BROKER) --pool $(POOL) \
	    $(if $(SELECTION),--selection $(SELECTION)) $(ARGS)

lint: $(VENV)/dev.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/dev.done
	$(VENV)/bin/mypy

soak: $(VENV)/dev.done
	@tests/install_servers.sh
	$(VENV)/bin/python -m tests.soak --minutes $(MINUTES) $(ARGS)

bench: $(VENV)/bench.done
	@tests/install_servers.sh
	$(VENV)/bin/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Environments. A .done file says that its packages are installed.

# Extensions that work with the newest Celery, which they do not allow yet.
UNPINNED = "celery-batches>=0.11"

$(VENV)/pip.done $(OLDEST)/pip.done $(CELERY)/pip.done: %/pip.done:
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --upgrade "pip>=25.1"  # knows --group
	@touch $@

$(VENV)/demo.done: pyproject.toml | $(VENV)/pip.done
	$(VENV)/bin/python -m pip install --quiet --editable ".[demo]"
	@touch $@

$(VENV)/dev.done: pyproject.toml | $(VENV)/pip.done
	$(VENV)/bin/python -m pip install --quiet --editable ".[demo,redis]" --group dev
	$(VENV)/bin/python -m pip install --quiet --no-deps $(UNPINNED)
	@touch $@

$(VENV)/bench.done: $(VENV)/dev.done
	$(VENV)/bin/python -m pip install --quiet --group bench
	@touch $@

$(CELERY)/celery.done: pyproject.toml | $(CELERY)/pip.done
	$(CELERY)/bin/python -m pip install --quiet --editable ".[redis]" --group celery
	@touch $@

$(OLDEST)/dev.done: pyproject.toml tests/oldest.py | $(OLDEST)/pip.done
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --editable ".[demo,redis]" --group tests \
	    --constraint $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --no-deps $(UNPINNED)
	@touch $@
