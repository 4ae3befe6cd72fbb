# make report      measure this machine, write reports/index.html and print the answer; tables: retbench table latency
# make test        run the tests that every change must pass, in two processes with separate cores (tests/conftest.py);
#                  ends if one of them dies
# make test-long   run all tests, the slow ones too, in one process with all cores; property tests draw new examples
# make check       run lint, types and test
# make exact       compare machine-independent quantities with results/baselines/exact.json
# make pages       write generated pages: experiments/README.md, and from results/published the answer and the claims in
#                  README.md and the figures in docs with their data
# make picture     make pages, then docs/page.png: the first screen of the published report, by headless Chromium
# make bench-peers compare with torchscale, yet-another-retnet and transformers: equality first, then speed
# make bench-eval  compare with lm-eval's HFLM: answers document by document, then speed; needs RETBENCH_DATA
# make bench-predict  compare predicted decode times with measured ones on this CPU
# make gpu-check   on a GPU: environment, tests, smoke, then the paper's sizes; BUDGET=30 (minutes)
PYTHON ?= python3
BIN := .venv/bin
# Many containers set this. Each process of a run would then compile the modules of torch anew, which takes seconds.
export PYTHONDONTWRITEBYTECODE :=
BUDGET ?= 30
# uv installs PyTorch in a third of pip's time. It does not read pip's settings: folders of wheels and a file of
# certificates are handed on to it, and pip installs where others say where packages come from or how they are reached.
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check
PIP_ONLY := index|proxy|host|client|constraint|prefer|only|no-binary|links=.*[\ ]
WHEELS = $$($(BIN)/pip config list | sed -nE "s/^.*\.find-links='(.*)'$$/--find-links=\1/p" | sort -u)
CERTIFICATES = $$($(BIN)/pip config list | sed -nE "s/^.*\.cert='(.*)'$$/\1/p" | head -n 1)
PAGE_FIGURES := kin_decode_batch1 quality_perplexity_litbank-original_whole_4096_by_position \
	recall_slices_recall_slices_litbank-original_2048_gain mqar_mqar_frontier \
	mqar_mqar_mqar_32_8_distance mqar_training_run_mqar_32_rates length_recall_length_recall_40k \
	length_recall_training_run_length_recall_32_rates needle_needle_short_25k_map \
	kin_quality_perplexity_litbank-original_strided_512_by_state \
	kin_quality_perplexity_litbank-original_whole_2048_by_position \
	kin_quality_training_run_classic_books_512_rates

report: .venv/installed
	@$(BIN)/retbench run latency > .venv/latency.md
	@$(BIN)/retbench run memory > .venv/memory.md
	@$(BIN)/retbench report

check: lint types test

# Files in their own order: by the number of their tests, those with few and long ones would all come last.
test: .venv/installed-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m "not slow"

test-long: .venv/installed-dev
	$(BIN)/pytest --hypothesis-profile search

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/installed-dev
	$(BIN)/mypy -p retbench -p benchmarks

exact: .venv/installed-dev
	$(BIN)/retbench check

pages: .venv/installed
	$(BIN)/retbench list --page > experiments/README.md
	$(BIN)/retbench claims --format short --results results/published > .venv/claims.md
	$(BIN)/retbench report --results results/published --out .venv/page
	sed -e '1,2d' -e '/^!\[/,$$d' .venv/page/report.md > .venv/answer.md
	for name in answer claims; do \
	  sed -e "/^<!-- begin $$name/,/^<!-- end $$name/{//!d;}" -e "/^<!-- begin $$name/r .venv/$$name.md" README.md > .venv/README.md \
	  && cp .venv/README.md README.md || exit 1; done
	for name in $(PAGE_FIGURES); do cp .venv/page/figures/$$name.svg .venv/page/figures/$$name.csv docs/ || exit 1; done

picture: pages
	$(BIN)/python -m benchmarks.page_picture .venv/page docs/page.png

bench-peers: .venv/installed-peers
	$(BIN)/python -m benchmarks.peers

bench-eval: .venv/installed-peers
	$(BIN)/python -m benchmarks.eval

bench-predict: .venv/installed
	$(BIN)/python -m benchmarks.predict

gpu-check: .venv/installed-gpu
	$(BIN)/python -m benchmarks.gpu_check --budget $(BUDGET)

.venv/installed: EXTRAS :=
.venv/installed-dev: EXTRAS := [dev]
.venv/installed-peers: EXTRAS := [peers]
.venv/installed-gpu: EXTRAS := [dev,kernels]
.venv/installed .venv/installed-dev .venv/installed-peers .venv/installed-gpu: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"retbench needs Python 3.11 or newer and {sys.executable} is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12" if v < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@if $(BIN)/pip config list | grep -E '$(PIP_ONLY)' > /dev/null || ! $(PIP_INSTALL) --only-binary :all: uv; \
	then install="$(PIP_INSTALL) --no-compile"; \
	else install="$(BIN)/uv pip install --quiet --python $(BIN)/python $(WHEELS)"; \
	  if [ -z "$$SSL_CERT_FILE" ] && [ -n "$(CERTIFICATES)" ]; then export SSL_CERT_FILE="$(CERTIFICATES)"; fi; fi; \
	set -x; $$install --editable '.$(EXTRAS)'
	@touch $@

.PHONY: report check test test-long lint types exact pages picture bench-peers bench-eval bench-predict gpu-check
