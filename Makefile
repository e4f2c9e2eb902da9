# The two commands: `make demo` trains and evaluates a classifier of handwritten digits and a captioner of generated
# scenes, predicts, captions and draws attention maps with them; `make test` runs the tests.
# Both set everything up themselves: they need Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Larger data for some tests and benchmarks; they make their own small data, or say why not, without it.
ifneq ($(wildcard ../shared/data),)
export VIT_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test slow check lint bench install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'vit needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/vit data make digits demo/digits
	rm -rf demo/run
	$(BIN)/vit train demo/digits --config configs/classify/digits.yaml --out demo/run
	$(BIN)/vit evaluate demo/run demo/digits
	$(BIN)/vit predict demo/run demo/digits/val/0 demo/digits/val/7 --top 2 --out demo/predictions.jsonl
	head -n 3 demo/predictions.jsonl
	rm -rf demo/attention
	$(BIN)/vit attention demo/run demo/digits/val/*/00[0-6]*.png --out demo/attention
	rm -rf demo/scenes demo/captioner demo/words
	$(BIN)/vit data make scenes demo/scenes --simple
	$(BIN)/vit train demo/scenes --config configs/caption/scenes_simple.yaml --out demo/captioner
	$(BIN)/vit evaluate demo/captioner demo/scenes --split val
	$(BIN)/vit caption demo/captioner demo/scenes/images/val-00000[0-2].png \
	    --attention demo/words --method generic --out demo/captions.jsonl
	@echo
	@echo "images        demo/digits"
	@echo "run           demo/run          (tensorboard --logdir demo/run)"
	@echo "report        demo/run/evaluation/digits/val"
	@echo "predictions   demo/predictions.jsonl"
	@echo "attention     demo/attention    (what the classifier looks at)"
	@echo "scenes        demo/scenes"
	@echo "captioner     demo/captioner    (its captions of unseen scenes: demo/captioner/evaluation/scenes/val)"
	@echo "word maps     demo/words        (where the captioner looks for each word)"

test: install
	$(BIN)/python -m pytest

slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

bench: install
	$(BIN)/python scripts/bench_all.py

clean:
	rm -rf demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
