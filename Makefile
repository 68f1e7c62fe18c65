# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := pyproject.toml constraints.txt hatch_build.py data_pipeline/build/read/_walk.c
# torch first and alone: asked for by another package, pip would take the largest build it finds.
STAMP := .venv/.installed-$(shell cat $(INSTALLED) | cksum | cut -d' ' -f1)

.PHONY: setup demo test lint clean
setup: $(STAMP)

$(STAMP): $(INSTALLED)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "Fovea needs Python 3.11 or 3.12, $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f .venv/.installed-*
	@touch $@

demo: $(STAMP)
	$(BIN)/fovea demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2

lint: $(STAMP)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache
