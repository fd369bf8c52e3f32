# The usual commands. `make setup` once, in an environment of your own.
.PHONY: setup lint format test test-gpu docs serve reference

setup:  ## Install ParaDiT for development
	pip install -c constraints.txt -e ".[test]"

lint:  ## Style and types
	ruff check .
	ruff format --check .
	mypy

format:  ## Mend the style
	ruff check --fix .
	ruff format .

test:  ## All tests, from cheap to dear; those that need a GPU are skipped without one
	pytest $(PARALLEL)

test-unit:  ## Tests of pure Python, or of one process
	pytest $(PARALLEL) -m unit

test-world:  ## Tests with several processes of ranks
	pytest $(PARALLEL) -m world

test-cli:  ## Tests of the real command
	pytest $(PARALLEL) -m cli

test-gpu:  ## Tests that need a GPU
	pytest -m gpu

test-long:  ## The long forms: 40 kills at random, and 2,000 examples of every file with arbitrary content
	PARADIT_KILLS=40 pytest tests/cli/test_faults.py -k random --timeout=7200
	PARADIT_EXAMPLES=2000 pytest tests/unit/test_arbitrary_files.py --timeout=7200

docs:  ## Build the site; a warning or a broken link fails
	python -m zensical build --clean --strict

serve:  ## Show the site while you write
	python -m zensical serve

reference:  ## Write the generated tables of docs/reference/ anew
	python benchmarks/reference_pages.py
