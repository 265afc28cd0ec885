# Every target sets up what it needs: a virtual environment in .venv with the pinned packages.
#   make demo                      best on the example, next to affine and unet: within six minutes
#   make test                      the test suite; make test-browser: the report in a browser, which must be there
#   make properties                hundred times as many random inputs as `make test` draws: about an hour
#   make faults, make kills        campaigns: calls on files that fail, disks that are full, kills; MOST=all, KILLS=100
#   make preprocess CONFIG=my.yaml METHOD=brbs    one target per stage; SET="--set key=value" overrides settings
#   make predict CONFIG=my.yaml METHOD=best SCANS=new OUT=labels
#   make TORCH_INDEX=https://download.pytorch.org/whl/cu130 demo    another build of torch

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= data.example/lrls.yaml
METHOD ?= brbs
SET ?=
READERS ?=
SCANS ?=
OUT ?=
TORCH_INDEX ?=
MOST ?= 4
KILLS ?= 20

BIN := $(VENV)/bin
LRLS := $(BIN)/lrls
READY := $(VENV)/.ready

.PHONY: setup demo test test-browser properties faults kills fuzz lint bench check suggest-atlas preprocess \
	train-reg generate train-seg eval run calibrate export predict clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lrls needs Python 3.11 or newer; make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(LRLS) run data.example/lrls.yaml --budget 2m
	$(LRLS) run data.example/lrls.yaml --method unet --budget 2m
	$(LRLS) run data.example/lrls.yaml --method affine --budget 2m
	$(LRLS) compare data.example/lrls.yaml --method unet --method affine --method best

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --durations=15

test-browser: $(READY)  # fails where there is no chromium
	LRLS_BROWSER=required $(BIN)/python -m pytest tests/reporting

properties: $(READY)
	LRLS_PROPERTIES=100 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile tests/properties

CAMPAIGN := OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python tests/campaigns

faults: $(READY)  # every kind of call on files fails in turn, in every command; MOST=all: every call
	$(CAMPAIGN)/faults.py --most $(MOST)
	$(CAMPAIGN)/disks.py

kills: $(READY)  # kill -9 and SIGTERM at random moments of every command
	$(CAMPAIGN)/kills.py --kills $(KILLS)
	$(CAMPAIGN)/kills.py --kills $(KILLS) --dask

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(READY)  # every reader; READERS="--reader nifti --tries 1000" reads some
	cd tests && PYTHONPATH=.. OMP_NUM_THREADS=1 ../$(BIN)/python -m attacks.fuzz --keep ../found $(READERS)

bench: $(READY)
	$(BIN)/python docs/benchmarks/brbs_step.py
	$(BIN)/python docs/benchmarks/best_step.py
	$(BIN)/python docs/benchmarks/method_steps.py

check suggest-atlas preprocess: $(READY)
	$(LRLS) $@ $(CONFIG) $(SET)

train-reg generate train-seg eval run calibrate: $(READY)
	$(LRLS) $@ $(CONFIG) --method $(METHOD) $(SET)

export: $(READY)
	$(LRLS) export $(CONFIG) --method $(METHOD) --out $(OUT) $(SET)

predict: $(READY)
	$(LRLS) predict $(CONFIG) --method $(METHOD) $(SCANS) --out $(OUT) $(SET)

clean:
	rm -rf $(VENV) runs
