# The usual commands. `make setup` once, in an environment of your own.
.PHONY: setup lint format test test-gpu docs serve options

setup:  ## Install ParaDiT for development
	pip install -c constraints.txt -e ".[test]"

lint:  ## Style and types
	ruff check .
	ruff format --check .
	mypy

format:  ## Mend the style
	ruff check --fix .
	ruff format .

test:  ## All tests that need no GPU
	pytest

test-gpu:  ## Tests that need a GPU
	pytest -n0 tests/gpu/test_gpu.py

docs:  ## Build the site; a warning or a broken link fails
	python -m zensical build --clean --strict

serve:  ## Show the site while you write
	python -m zensical serve

options:  ## Write the page of options anew
	python benchmarks/options_page.py
