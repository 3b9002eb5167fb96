# `make demo` and `make test` do all the set-up themselves and can be repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-fast test-shapes test-slow test-all test-zero3 test-oldest test-lmms wheel-test benchmarks study check docs format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/quickstart.py

# two processes with half of the files each, in order, so that a file's tests share what they load;
# the one that is ready first takes half of what the other has left
TWO := -n 2 --dist worksteal

test: $(STAMP)
	$(BIN)/python -m pytest $(TWO)

# the mathematics and the data, while one works on them
test-fast: $(STAMP)
	$(BIN)/python -m pytest $(TWO) tests/test_tiling.py tests/ops tests/connectors tests/model tests/data

# the shapes in signatures, checked at each call; operators that torch reads the signatures of are left out
SHAPES := alignvlm.ops.reference,alignvlm.connectors,alignvlm.model,alignvlm.reader,beartype.beartype
test-shapes: $(STAMP)
	$(BIN)/python -m pytest $(TWO) -m "not slow and not gpu and not wrong_shapes" --jaxtyping-packages=$(SHAPES) tests/connectors/test_contract.py tests/connectors/test_formulas.py tests/model/test_config.py tests/model/test_dropping.py tests/reader/test_boxes.py tests/reader/test_order.py tests/reader/test_decode.py

# what takes longer or needs more: real weights (pip), a browser (Debian's chromium), its pdftotext, Ray, torchrun
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-all: test test-slow

# DeepSpeed ZeRO-3 on two processes; DeepSpeed compiles nothing here
test-zero3: $(STAMP)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "deepspeed>=0.19"
	$(BIN)/python -m pytest -m "not gpu" tests/train/test_distributed.py -k zero3

# the oldest supported transformers, in an environment of its own
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest tests/connectors tests/ops tests/model tests/processing tests/reader tests/compose tests/inference

$(OLDEST)/.installed: pyproject.toml constraints.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" "transformers==5.18.0"
	touch $(OLDEST)/.installed

# lmms-eval's metadata wants torchvision: without it, in an environment of its own
LMMS := .venv-lmms
test-lmms: $(LMMS)/.installed
	$(LMMS)/bin/python -m pytest tests/eval/test_lmms.py tests/eval/test_lmms_general.py

$(LMMS)/.installed: pyproject.toml constraints.txt tests/eval/requirements-lmms.txt
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" -r tests/eval/requirements-lmms.txt
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3
	touch $(LMMS)/.installed

# the built wheel, in an environment and a folder that know nothing of this one; fetches SmolLM2 once
wheel-test:
	rm -rf build/wheel && mkdir -p build/wheel/elsewhere
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	cd build/wheel/elsewhere && ../venv/bin/alignvlm ask smol $(CURDIR)/examples/pages/form.png "What is the town?"

# what docs/performance.md and docs/cost.md show; the machine should do nothing else
benchmarks: $(STAMP)
	$(BIN)/python -m benchmarks.vocab_mixture --preset cpu
	$(BIN)/python -m benchmarks.vocab_mixture --preset page
	$(BIN)/python -m benchmarks.connectors
	$(BIN)/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.growth page

# the connector study (docs/adr/0012); the same command goes on after an interruption
RECEIPTS ?= ../shared/data/sroie/train
study: $(STAMP)
	$(BIN)/python -m studies.connectors run --receipts $(RECEIPTS) --parallel 2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/house
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# the documentation as a web site, on 127.0.0.1:8000
docs: $(STAMP)
	$(BIN)/mkdocs serve

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) $(LMMS) demo build dist .pytest_cache .ruff_cache
