# The verbs of this project, in the active virtual environment; `make help` lists them.
.PHONY: help install lint format types test test-fast nightly versions docs bench gallery outsiders

help:  ## List the verbs.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install:  ## Install the package with everything that developing it needs.
	python -m pip install -c constraints.txt -e ".[dev]"

lint: types  ## Check style, types and spelling.
	python -m ruff check .
	python -m ruff format --check .
	python -m codespell_lib README.md CHANGELOG.md CONTRIBUTING.md docs ntk_monitor examples benchmarks

format:  ## Bring the code into the one format.
	python -m ruff check --fix .
	python -m ruff format .

types:  ## Check types.
	python -m mypy

test:  ## Run all tests, the doctests among them.
	python -m pytest -n 3 --dist loadscope

test-fast:  ## Run the tests that take little, while working.
	python -m pytest -n 3 --dist loadscope -m "not slow"

nightly:  ## Run all tests with all combinations and examples: hours.
	NTK_MONITOR_NIGHTLY=1 python -m pytest -n 3 --dist loadscope

versions:  ## Run most tests with the lowest and the newest releases of everything (needs uv and gigabytes).
	.ci/versions

docs:  ## Build the site into docs/_build; a warning is an error, and so is a reference to nothing.
	python -m sphinx -W --keep-going -n -b html docs docs/_build/html

bench:  ## Run all benchmarks and render docs/performance.md.
	cd benchmarks && python accuracy.py && python intervals.py && python cost.py && python step_cost.py && python growth.py && python engine.py && python alternatives.py && python overhead.py && python render.py

gallery:  ## Train the runs of docs/gallery.md, draw its pictures and write it.
	python docs/gallery.py

outsiders:  ## Run trainings of other libraries, each in its own environment, and render docs/models.md (nightly).
	PYTHONPATH=tests python -m outsiders.page
