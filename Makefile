# Two commands: `make quickstart` and `make test`. Both set up .venv when it is missing
# or when the requirements have changed, and nothing else outside this folder.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For two cores: some tests wait for processes of their own. Five minutes a test at most.
PYTEST_ARGS ?= -n 3 --dist=worksteal --timeout=300

.PHONY: quickstart test lint format setup clean
.DELETE_ON_ERROR:

## Pretrain, fine-tune at a higher resolution and predict, on the embedded digits.
quickstart: $(VENV)/.installed
	$(BIN)/python -m vit_jax.quickstart $(if $(filter-out 0 no false,$(FRESH)),--fresh)

## All tests, on 8 simulated devices.
test: $(VENV)/.installed-dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest $(PYTEST_ARGS)

## Lint, formatting, types and the import contracts.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed

clean:
	rm -rf $(VENV)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"error: vit_jax needs Python 3.11 or newer, and $(PYTHON) is " + \
	sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: setup.py constraints.txt | $(VENV)/.created
	@echo "Setting up $(VENV): takes a few minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: setup.py constraints.txt | $(VENV)/.created
	@echo "Setting up $(VENV) with the tests' tools: takes a few minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.installed $@
