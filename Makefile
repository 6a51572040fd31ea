# Everything a fresh machine needs: `make demo` and `make test` set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint figures clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/diffusers-fdu demo --output-dir runs/demo

test: .venv/installed lint
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: .venv/installed
	$(BIN)/python examples/measure_emoji.py --output runs/figures.json

clean:
	rm -rf .venv
