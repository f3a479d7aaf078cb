# make demo: which language does each layer of a real multilingual model speak? (no hub needed)
# make test: lint, types and the whole test suite; make test-fast: the tests of a minute, for one who edits
# make campaign: malformed inputs, kills and planted faults; SHARE=0.1 SEED=text draws a tenth of them
# make bench: speed and memory beside others, a JSON row each in results/bench.jsonl (BENCH="--datasets_dir DIR ...")
# make bench-gpu: the same on a GPU, with the model that BENCH names
# make install: .venv with what requirements.lock holds, checksums compared, and the offline model
# make lock: requirements.lock anew, from the pins of requirements.txt and requirements-dev.txt; make licences: its
# packages' licences, in docs/licences.md

PYTHON ?= python3
BIN = .venv/bin
# Tests share two or more processes; threads within each would only wait for one another. Forked processes have torch
# loaded already, so that what it says of a lost connection is turned off here. A process takes a file at a time, in
# the order of tests/conftest.py.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false TORCH_CPP_LOG_LEVEL=ERROR $(BIN)/python -m pytest -n auto \
  --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-fast bench bench-gpu lint install lock licences clean campaign

demo: install
	$(BIN)/python logit_lens_tokenid_to_lang.py --model gemma-3-270m
	$(BIN)/python probe_logit_lens.py --model gemma-3-270m

test: lint
	$(PYTEST)

SHARE ?= 1
SEED ?= 0

campaign: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign --share $(SHARE) --seed $(SEED)

test-fast: install
	$(PYTEST) -m "not slow"

bench: install
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-gpu: install
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no GPU here")'
	$(BIN)/python benchmarks/bench.py --model bigscience/bloomz-560m $(BENCH)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

# Nothing is installed whose checksum the lock does not have. langid comes as source alone: it is built with the lock's
# setuptools, where pip would fetch one by itself. A build of torch that lies in a folder of PIP_FIND_LINKS is taken
# before PyPI's; one with a + in its version, as 2.13.0+cpu, is no CUDA build of PyPI's.
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install --quiet --no-deps --require-hashes --no-build-isolation --use-pep517

.venv/installed: requirements.lock requirements-cuda.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	sed -n '/^setuptools==/,/# via/p' requirements.lock > .venv/setuptools.lock
	$(INSTALL) -r .venv/setuptools.lock
	sed -n '/^torch==/,/# via/p' requirements.lock > .venv/torch.lock
	$(INSTALL) --no-index -r .venv/torch.lock 2> /dev/null || true
	$(INSTALL) -r requirements.lock
	$(BIN)/python -c 'from importlib import metadata; exit("+" in metadata.version("torch"))' || exit 0; \
	  $(INSTALL) -r requirements-cuda.lock
	$(PIP) check
	$(BIN)/python -c 'from utils.models.offline import offline_model; print("offline model:", offline_model())'
	touch $@

# after a change of the pins; needs uv
lock:
	$(PYTHON) tools/lock.py

licences: install
	$(BIN)/python -m tools.licences

clean:
	rm -rf .venv results
