# Everything a newcomer needs: `make demo` and `make test` work on a fresh clone with Python 3.11+ and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO_ARGS ?=
PROVE_ARGS ?=
COMPARE_ARGS ?=
FAULTS_ARGS ?=
CHAOS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help audit dist dist-test docs demo test lint types unit bench compare growth prove hostile faults chaos clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# pip 25.1 brought --group; the stamp is renewed when the project's requirements change
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

# asgi-caches runs on today's Starlette, but says that it wants an old one
$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps asgi-caches==0.3.1 async-caches==0.3.0
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group docs
	@touch $@

demo: $(VENV)/.demo ## run the demo: two tenants, real spans, live figures (DEMO_ARGS="--duration 20 --headless")
	$(BIN)/nexcache demo $(DEMO_ARGS)

test: $(VENV)/.dev lint types unit ## everything that CI checks

lint: $(VENV)/.dev ## ruff: rules and format; bandit: what is dangerous
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --severity-level medium --recursive nexcache

audit: $(VENV)/.demo ## ask the network which packages of an installation are known to be vulnerable
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check --group audit
	$(VENV)/audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" --skip-editable

types: $(VENV)/.dev ## mypy --strict on source and tests
	$(BIN)/mypy

unit: $(VENV)/.dev ## the test suite: on all cores, and alone what measures delays
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --ignore tests/faults
	$(BIN)/python -m pytest tests/faults

bench: $(VENV)/.dev ## what a hit, a stampede, an invalidation and a noisy neighbour cost (minutes)
	$(BIN)/python benchmarks/hit.py
	$(BIN)/python benchmarks/degraded.py
	$(BIN)/python benchmarks/stampede.py
	$(BIN)/python benchmarks/invalidate.py
	$(BIN)/python benchmarks/fairness.py
	$(BIN)/python benchmarks/side_channel.py

compare: $(VENV)/.bench ## NexCache beside its peers and beside what it promises: one table (COMPARE_ARGS="--quick --json")
	$(BIN)/python -m benchmarks.compare $(COMPARE_ARGS)

growth: $(VENV)/.bench ## how costs grow, as tables and pictures in docs/ (minutes)
	$(BIN)/python -m benchmarks.growth --write docs

prove: $(VENV)/.dev ## prove the guarantee at length (PROVE_ARGS="--requests 100000")
	$(BIN)/python -m tests.model.prove $(PROVE_ARGS)

hostile: $(VENV)/.dev ## every hostile input against every server, by class
	$(BIN)/python -m tests.hostile

faults: $(VENV)/.dev ## every fault of docs/reliability.md on Valkey and Redis (FAULTS_ARGS="--rows F3,F17 --brief")
	$(BIN)/python -m tests.faults $(FAULTS_ARGS)

chaos: $(VENV)/.dev ## half an hour of random faults, with a seed (CHAOS_ARGS="--minutes 5 --seed 1")
	$(BIN)/python -m tests.faults.chaos $(CHAOS_ARGS)

dist: ## build wheel and sdist into dist/
	rm -rf dist
	$(PYTHON) -m venv $(VENV)/build
	$(VENV)/build/bin/python -m pip install --quiet --disable-pip-version-check build
	$(VENV)/build/bin/python -m build --outdir dist

dist-test: dist ## the same, and use the wheel where nothing else of the repository is
	PYTHON=$(PYTHON) .ci/test-wheel

docs: $(VENV)/.docs ## build the site into site/; a warning is an error
	$(BIN)/python -m mkdocs build --strict --quiet

clean: ## remove what the targets made
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
