# SPDX-License-Identifier: Apache-2.0
# `make` lists what there is to do.  Every target can be run again; what is done already is not done twice.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
SHELL := /bin/sh
.DEFAULT_GOAL := help
N := 200
SEED := 1
PAIRS := 3
.PHONY: faults help setup venv demo test test-unit test-kernel test-system test-security test-vm bench bench-start bench-migrate bench-track bench-dump bench-monitor bench-postgres matrix lint format lock clean

# Ends make with the code of a recipe that failed (3: this machine lacks something), not with 2: see the C file.
-load .stamps/make_exit.so
.stamps/make_exit.so: scripts/make_exit.c
	@mkdir -p .stamps && gcc -shared -fPIC -o $@ $< 2> /dev/null || true
PASS_ON = || { code=$$?; echo $$code > .stamps/exit; exit $$code; }

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## Debian packages, .venv and CRIU for this machine (root); fast when nothing is missing
	@scripts/setup $(PASS_ON)

venv: ## only .venv, from the hashed lock files (no root needed)
	@scripts/setup --only-venv

demo: setup ## two hosts, two users, one running Redis carried from one host to the other
	@$(PYTHON) -m demo $(PASS_ON)

test: setup ## all tests: unit, house rules, then kernel and system tests as root
	@scripts/test

test-unit: venv ## unit tests and house rules (no root needed)
	@$(PYTEST) tests/unit tests/test_layers.py tests/test_style.py

test-kernel: setup ## tests against this machine's real kernel (root)
	@$(PYTEST) tests/kernel

test-system: setup ## tests of daemons through their sockets (root)
	@$(PYTEST) tests/system

test-security: setup ## what must not be possible: the numbered checks of tests/security (root, five minutes)
	@scripts/test-security

test-vm: ## two emulated machines with Linux 6.1 and 6.12: moves between them, a patch (root, 15 minutes, 3 GB of disk)
	@scripts/setup --with-vm $(PASS_ON)
	@INSULA_TESTS_VM=1 $(PYTEST) -x -s tests/vm

faults: setup ## N=200 moves with a fault in each (SEED=1, PAIRS=3 of hosts at once), and planted mistakes, which must be noticed
	@$(PYTHON) -m tests.faults --planted $(PASS_ON)
	@$(PYTHON) -m tests.faults --cases $(N) --seed $(SEED) --pairs $(PAIRS) $(PASS_ON)

bench: bench-start bench-migrate bench-track bench-dump ## all figures below

bench-start: setup ## how long create + start + exit takes, beside the peers that are installed
	@$(PYTHON) bench/start.py

bench-migrate: setup ## what clients see of moves, beside podman and plain CRIU; PARTS="redis100 podman": some; MOVES=20
	@$(PYTHON) bench/migrate.py $(PARTS) $(if $(MOVES),--moves $(MOVES)) $(PASS_ON)

bench-track: setup ## how much slower a program runs while its memory is tracked
	@$(PYTHON) bench/track.py $(PASS_ON)

bench-postgres: setup ## what eight clients of PostgreSQL see of moves (needs: apt-get install postgresql)
	@$(PYTHON) bench/postgres.py $(PASS_ON)

bench-monitor: setup ## how much slower programs run while they are watched, beside strace and bpftrace; events without loss; 500 containers at rest
	@$(PYTHON) bench/monitor.py $(PASS_ON)

bench-tenants: setup ## what a tenant's flood costs another one's requests and application; ROUNDS=3
	@$(PYTHON) bench/tenants.py $(ROUNDS) $(PASS_ON)

bench-dump: setup ## how long CRIU's dump has a program stand, by its memory
	@$(PYTHON) bench/dump.py $(PASS_ON)

matrix: setup ## unmodified programs carried between two hosts, the table in docs/matrix.md; PROGRAMS="redis nginx": some
	@$(PYTHON) -m tests.matrix $(PROGRAMS) $(PASS_ON)

lint: venv ## formatting, lint, types
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

format: venv ## let ruff lay out the code
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

lock: ## resolve the dependencies of pyproject.toml anew into requirements*.lock
	@scripts/lock

clean: ## remove what `make` made in this folder (not the Debian packages, not CRIU)
	rm -rf .venv .stamps build dist src/insula.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
