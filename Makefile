# The two commands: `make demo` trains, evaluates and uses a classifier of real handwritten digits and a captioner of
# generated scenes; `make test` runs the tests.
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
	$(BIN)/vit data make scenes demo/scenes
	rm -rf demo/captioner demo/words
	@# two minutes: without what the recipe takes to put together words it never saw together, and learns slowly by
	$(BIN)/vit train demo/scenes --config configs/caption/scenes.yaml --out demo/captioner --train.epochs 6 \
	    --train.validate_every 6 --text.word_dropout 0 --augment.color_jitter 0 --optim.weight_decay 0.1
	$(BIN)/vit evaluate demo/captioner demo/scenes --split val --no-repeat-ngram 4
	$(BIN)/vit caption demo/captioner demo/scenes/images/val-00000[0-2].png --no-repeat-ngram 4 \
	    --attention demo/words --method generic --out demo/captions.jsonl
	@echo
	@echo "pictures      demo/digits"
	@echo "run           demo/run          (tensorboard --logdir demo/run)"
	@echo "report        demo/run/evaluation/digits/val"
	@echo "predictions   demo/predictions.jsonl"
	@echo "scenes        demo/scenes"
	@echo "captioner     demo/captioner    (its captions of unseen scenes: demo/captioner/evaluation/scenes/val)"
	@echo "word maps     demo/words        (after two minutes of training: some words still look elsewhere)"

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
