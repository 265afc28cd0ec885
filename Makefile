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
TOOLS := $(VENV)-tools

.PHONY: setup demo test test-browser properties faults kills fuzz lint hashes setup-hashed audit sbom wheel bench check \
	suggest-atlas preprocess train-reg generate train-seg eval run calibrate export predict clean

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

hashes: $(TOOLS)/.ready  # requirements-hashes.txt anew, after constraints.txt changed
	$(TOOLS)/bin/uv pip compile --quiet --extra dev --generate-hashes --universal --python-version 3.11 --no-config \
		--default-index https://pypi.org/simple --no-header --no-annotate -c constraints.txt pyproject.toml \
		-o requirements-hashes.txt

setup-hashed: requirements-hashes.txt  # as setup, from PyPI alone, and no file but those whose SHA-256 are listed
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-hashes.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(READY)

audit: $(TOOLS)/.ready  # advisories on what is pinned; fails where nobody can be asked
	@$(TOOLS)/bin/pip-audit -r requirements-hashes.txt --disable-pip --require-hashes --progress-spinner off \
		2> $(TOOLS)/audit.txt || { tail -n 1 $(TOOLS)/audit.txt; \
		echo "audit: there are advisories, or the service was not reached (see above); nothing is vouched for."; exit 1; }
	@tail -n 1 $(TOOLS)/audit.txt

sbom: $(TOOLS)/.ready  # CycloneDX, in dist/
	mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py requirements requirements-hashes.txt --pyproject pyproject.toml --output-reproducible \
		--of JSON -o dist/lrls.cdx.json

wheel: $(TOOLS)/.ready  # the same bytes each time
	rm -rf build dist/*.whl
	SOURCE_DATE_EPOCH=1735689600 $(TOOLS)/bin/pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	rm -rf build

$(TOOLS)/.ready:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

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
