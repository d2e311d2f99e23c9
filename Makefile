# What people and CI run. Each target sets up .venv first, if anything of it has changed.

PYTHON := .venv/bin/python
METADATA := setup.cfg pyproject.toml scripts/bootstrap tests/packages/from-pypi.txt \
	$(wildcard examples/*/pyproject.toml examples/*/setup.cfg) \
	$(wildcard tests/packages/*/pyproject.toml tests/packages/*/setup.cfg)

# Some files of tests at a time, as most of them wait for something, in the order of conftest.py.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
# Random: --randomly-seed=N repeats an order, -p no:randomly keeps that of the files.
ORDER :=
# Of the soak.
MINUTES := 60

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast faults soak deploy-test lint lock images versions bench bench-scale profile figures matrix layout docs release clean

help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

demo: .venv/.run ## Start a whole stack and count the coins of a picture in a job
	.venv/bin/girder-dask demo

test: .venv/.test ## Run all tests, with real services
	$(PYTHON) -m pytest -m 'not long' $(SIDE_BY_SIDE) $(ORDER) $(ARGS)

test-fast: .venv/.test ## Run the tests that need no stack
	$(PYTHON) -m pytest tests/unit -m 'not long and not stack' -n 4 $(ARGS)

faults: .venv/.test ## Kill, stop and cut off parts of a stack, for a longer time
	$(PYTHON) -m pytest tests/faults $(ARGS)

soak: .venv/.test ## Run a site for an hour under load while parts, secrets and the release change
	$(PYTHON) -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

deploy-test: ## Build the images of deploy/, and run its compose files, batch jobs, units and an SSHCluster, as root
	scripts/bootstrap deploy
	$(PYTHON) -m pytest tests/deploy $(ARGS)

lint: .venv/.dev ## Check the style, the types and the directions of imports
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	scripts/check_readability

lock: ## Renew the lock files of the images
	scripts/lock $(ARGS)

images: .venv/.run ## Build the images of Girder, of the scheduler and of workers
	scripts/images $(ARGS)

versions: ## Try each Python on the PATH with the oldest and the newest Dask
	scripts/try_versions $(ARGS)

bench: .venv/.bench ## Measure beside girder_worker and Dask, and write benchmarks/results/
	$(PYTHON) -m benchmarks $(ARGS)

bench-scale: .venv/.bench ## Measure with a million jobs: queue, restart of the scheduler, cancel
	$(PYTHON) -m benchmarks.scale $(ARGS)

profile: .venv/.bench ## Look where Girder, the scheduler and a worker spend their time
	$(PYTHON) -m benchmarks.profiles $(ARGS)

figures: .venv/.bench ## Put the last measurements into README.md and docs/performance.md
	$(PYTHON) -m benchmarks.pages

matrix: .venv/.test ## Put who may ask what of which route into docs/security.md
	GIRDER_DASK_WRITE_MATRIX=1 $(PYTHON) -m pytest tests/security/test_matrix.py

layout: .venv/.test ## Put the modules and what each is into docs/architecture.md
	$(PYTHON) -m tests.support.layout

docs: .venv/.dev ## Build the documentation in docs/_build/html
	$(PYTHON) -m sphinx -W --keep-going -b html docs docs/_build/html

release: .venv/.dev ## Build and check wheel and sdist in dist/, and say what to tag
	$(PYTHON) scripts/release $(ARGS)

clean: ## Remove what these targets made
	rm -rf .venv build dist docs/_build .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A larger set-up holds what a smaller one does, so that none of them undoes another.
.venv/.run: $(METADATA)
	scripts/bootstrap run

.venv/.bench: $(METADATA)
	scripts/bootstrap bench

.venv/.dev: $(METADATA)
	scripts/bootstrap dev

.venv/.test: $(METADATA)
	scripts/bootstrap test
