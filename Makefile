# `make demo` and `make test` are all a newcomer needs; `make help` lists the others. Each sets up what it needs first.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
DEMO_EXTRAS := compile,loadtest
DEV_EXTRAS := compile,loadtest,grpc,otel,redis,remote,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test check bench bench-peers bench-compile bench-policies bench-jobs runtimes peers load load-compare \
  chaos soak fuzz protos chart image lock clean

help:  ## list what can be made
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.ready-demo  ## compile the demo family, serve it, send load through a replayed grid day, show the joules
	@$(BIN)/python -m loadtest.demo

test: $(VENV)/.ready-dev check  ## everything that must be green
	$(BIN)/python -m pytest

check: $(VENV)/.ready-dev  ## style, types and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# DATA=folder that holds text/SET/*.parquet; QUICK=1: one family on a part of one set; STUDY='--set sst2', …
bench-compile: $(VENV)/.ready-demo  ## the recipes and the published pipeline beside ours; hours, and it goes on after a kill
	@$(BIN)/python -m compile.study $(if $(QUICK),--quick) $(STUDY) $(or $(JOULESERVE_TEST_DATA),$(DATA))

BENCH_EXTRAS := compile,loadtest,grpc
bench: $(VENV)/.ready-bench  ## what our server adds to raw ONNX Runtime, in one interleaved run
	@$(BIN)/python -m loadtest.bench $(BENCH)

bench-peers: $(VENV)/.ready-bench peers  ## the same beside other servers; their packages take 2 GB
	@$(BIN)/python -m loadtest.bench --peers $(BENCH)

runtimes: $(VENV)/.ready-bench peers  ## OpenVINO against ONNX Runtime on the demo's graphs
	@$(BIN)/python -m loadtest.runtimes $(RUNTIMES)

PEERS := .venv-peers
peers: $(PEERS)/.ready
$(PEERS)/.ready: loadtest/peers/requirements.lock
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

bench-policies: $(VENV)/.ready-demo  ## the shaping policies on recorded grids; DATA=folder that holds carbon/
	@$(BIN)/python -m server.replay.study $(DATA) $(POLICIES)

JOBS_GRID ?= $(DATA)/carbon/DE_2020_2021_hourly.csv.gz
bench-jobs: $(VENV)/.ready-demo  ## 1,000 jobs over a replayed week with five kills; then what clients notice
	@$(BIN)/python -m loadtest.jobs_bench $(JOBS_GRID) $(JOBS)
	@$(BIN)/python -m loadtest.jobs_beside

.PHONY: curves
curves: $(VENV)/.ready-demo  ## what each knob moves, measured; into docs/curves.json and .svg (10 minutes)
	@$(BIN)/python -m loadtest.curves $(CURVES)

.PHONY: pictures
pictures: $(VENV)/.ready-dev  ## the console and the dashboards of a server under load; needs chromium and prometheus
	@$(BIN)/python -m loadtest.pictures $(PICTURES)

.PHONY: docs-check
docs-check: $(VENV)/.ready-dev  ## every command in the docs, those too that take longer than a test may (about 40 minutes)
	@DOCS_CHECK=1 $(BIN)/pytest -q -rs --durations=0 tests/docs
	@$(BIN)/python -m tests.support.doc_commands

fuzz: $(VENV)/.ready-dev  ## 10,000 made-up HTTP requests and 10,000 over gRPC; no undocumented answer, and it lives
	@$(BIN)/python -m loadtest.fuzz $(FUZZ)
	@JOULESERVE_FUZZ_EXAMPLES=2500 $(BIN)/pytest -q tests/server/rpc/test_fuzz.py

FAMILY ?= support-intents
.PHONY: bench-dial
bench-dial: $(VENV)/.ready-demo  ## every point of the dial in a running server; FAMILY=name DATA=labelled .parquet or .csv
	@$(BIN)/python -m loadtest.dial --family $(FAMILY) --texts $(DATA) $(DIAL)

PROTOS := server/rpc/proto
protos: $(VENV)/.ready-dev  ## write the gRPC messages' code from the .proto files
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(PROTOS)/open_inference.proto $(PROTOS)/predictor.proto
	$(BIN)/python -m grpc_tools.protoc -I. --grpc_python_out=. $(PROTOS)/predictor.proto
	@# Into our own descriptor pool; see pool.py there.
	sed -i -e 's/^from google.protobuf import descriptor_pool as _descriptor_pool$$/from server.rpc.proto.pool import POOL as _POOL/' \
	  -e 's/_descriptor_pool\.Default()/_POOL/' $(PROTOS)/*_pb2.py

load: $(VENV)/.ready-bench  ## three minutes of load with locust, and a report; ARRIVALS=bursty|flat|FILE, LOAD='--web' to watch
	@$(BIN)/python -m loadtest.load run $(if $(ARRIVALS),--arrivals '$(ARRIVALS)') $(LOAD)

load-compare:  ## two runs of it side by side: A=var/load/... B=var/load/...
	@$(BIN)/python -m loadtest.load compare $(A) $(B)

chaos: $(VENV)/.ready-demo  ## overload, new versions, signals, kills and more against real servers, with figures
	@$(BIN)/python -m loadtest.chaos $(CHAOS)

soak: $(VENV)/.ready-demo  ## half an hour at half the capacity: memory and metric series must not grow
	@$(BIN)/python -m loadtest.soak $(SOAK)

chart: $(VENV)/.ready-dev  ## write what the chart takes from the code: dashboards, schema of the values, Ray's environment
	@$(BIN)/python -m helm.generate

IMAGE ?= jouleserve
image:  ## the serving image; BASE=NAME@sha256:… is Python 3.11 or later on Debian, CLIENTS="s3fs" for URLs of models
	docker build --build-arg BASE="$(BASE)" --build-arg CLIENTS="$(CLIENTS)" --tag $(IMAGE) .

lock: $(VENV)/.ready-dev  ## write the versions that are installed now
	@( sed -n '/^#/p' requirements.lock; \
	   $(PIP) freeze --exclude-editable | grep -v ' @ ' | grep -v '^helm-python-sdk' | sed 's/+cpu$$//' ) > requirements.lock.new
	@mv requirements.lock.new requirements.lock

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) install --quiet --constraint requirements.lock --editable '.[$(DEMO_EXTRAS)]'
	@touch $@

$(VENV)/.ready-bench: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) install --quiet --constraint requirements.lock --editable '.[$(BENCH_EXTRAS)]'
	@touch $@ $(VENV)/.ready-demo

$(VENV)/.ready-dev: pyproject.toml requirements.lock tests/helm/requirements.lock | $(VENV)/bin/python
	$(PIP) install --quiet --constraint requirements.lock --editable '.[$(DEV_EXTRAS)]'
	$(PIP) install --quiet --no-deps --require-hashes --requirement tests/helm/requirements.lock
	@touch $@ $(VENV)/.ready-demo $(VENV)/.ready-bench

clean:  ## forget what was built (not the environment)
	rm -rf var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
