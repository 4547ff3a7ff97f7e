# Two commands: `make quickstart` and `make test`. Both set up an environment when it is
# missing or when the requirements have changed, and nothing else outside this folder.
#
#   make test                     with python3, in .venv
#   make test PYTHON=python3.13   with another Python, in .venv-3.13
#   make test VERSIONS=lowest     with the lowest versions that setup.py allows, in
#                                 .venv-lowest; VERSIONS=newest: with the newest there are

PYTHON ?= python3
VERSIONS ?= pinned
# For two cores: some tests wait for processes of their own. Five minutes a test at most.
PYTEST_ARGS ?= -n 3 --dist=worksteal --timeout=300

# pyenv runs the commands of versions that are not switched on only when it is told to.
run = $(1) $(2) 2>/dev/null || PYENV_VERSION=$(patsubst python%,%,$(1)) $(1) $(2)
about = $(shell $(call run,$(1),-c 'import sys; print("%d.%d" % sys.version_info[:2], \
	sys.executable)') 2>/dev/null)
FOUND := $(call about,$(PYTHON))
VERSION := $(word 1,$(FOUND))
ifeq ($(PYTHON),python3)
  SUFFIX :=
else
  SUFFIX := $(if $(filter $(VERSION),$(word 1,$(call about,python3))),,-$(VERSION))
endif
VENV := .venv$(SUFFIX)$(if $(filter pinned,$(VERSIONS)),,-$(VERSIONS))
BIN := $(VENV)/bin
CONSTRAINTS_pinned := constraints.txt
CONSTRAINTS_lowest := constraints-lowest.txt
CONSTRAINTS := $(CONSTRAINTS_$(VERSIONS))
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(addprefix --constraint ,$(CONSTRAINTS))

.PHONY: quickstart test lint format setup clean
.DELETE_ON_ERROR:

## Pretrain, fine-tune at a higher resolution and predict, on the embedded digits.
quickstart: $(VENV)/.installed
	$(BIN)/python -m vit_jax.quickstart $(if $(filter-out 0 no false,$(FRESH)),--fresh) \
	  $(if $(WORKDIR),--workdir=$(WORKDIR))

## All tests, on 8 simulated devices.
test: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest $(PYTEST_ARGS)

## Lint, formatting, types, import contracts, first lines of docstrings.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_docstrings.py vit_jax configs benchmarks

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed

clean:
	rm -rf .venv .venv-*

# The stamp names the version: when python3 has become another one, .venv is made anew.
CREATED := $(VENV)/.python-$(VERSION)
$(CREATED):
	@test -n "$(VERSION)" || { $(PYTHON) -V; echo "error: $(PYTHON) does not run; name \
	another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(word 2,$(FOUND)) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"error: vit_jax needs Python 3.11 or newer, and $(PYTHON) is " + \
	sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	@case "$(VERSIONS)" in pinned|lowest|newest) ;; *) echo "error: \
	VERSIONS=$(VERSIONS); choose from pinned, lowest, newest" >&2; exit 1;; esac
	$(word 2,$(FOUND)) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: setup.py $(CONSTRAINTS) $(CREATED)
	@echo "Setting up $(VENV): takes a few minutes the first time."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: setup.py $(CONSTRAINTS) $(CREATED)
	@echo "Setting up $(VENV) with the tests' tools: takes a few minutes the first time."
	$(INSTALL) --editable '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: setup.py $(CONSTRAINTS) $(CREATED)
	@echo "Setting up $(VENV) with the tools of tests and lint: takes a few minutes."
	$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@
