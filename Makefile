# Everything a fresh machine with Python and git needs. Windows and plain pip: see README.md, "Install".
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/installed  ## train, evaluate and explain on critters; runs/demo/report.html
	$(BIN)/glasszoo demo

test: $(VENV)/installed  ## every test
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/installed  ## lint, format and types; mypy needs a package that lies in a folder of its own name
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --target build/installed .
	MYPYPATH=build/installed $(BIN)/mypy -p glasszoo

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[posthoc,test]"
	$(BIN)/python -m pip install --quiet --no-deps "sweeps >= 0.2"  # it asks for numpy < 2, which pyarrow no longer takes
	touch $@
