# make train and make test do all their own set-up; `make setup` does it alone.

# pyenv compiles Python without optimizations, and a plan takes a sixth longer with it: if the distribution's is of the
# same version and complete, it is taken.
PYTHON ?= $(shell whole() { $$1 -c 'import ensurepip, os, sys, sysconfig; \
    print(sys.version_info[:2], os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' 2> /dev/null; }; \
  slow='import sys, sysconfig; sys.exit("--enable-optimizations" in sysconfig.get_config_var("CONFIG_ARGS"))'; \
  python3 -c "$$slow" && [ "$$(whole /usr/bin/python3)" = "$$(whole python3)" ] && echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := data/sample
# Two ranks, or the one card there is.
TRAIN_RANKS := $(if $(filter 1,$(shell nvidia-smi -L 2> /dev/null | wc -l)),1,2)
# The tiny model wants a larger step than the 17B one that ds_configs are made for, down to nothing at the end, and whole
# batches a CPU: 16 samples a step in any case. Its layers are small: each is gathered as a whole.
TINY := ds_config.train_micro_batch_size_per_gpu=$(if $(filter 1,$(TRAIN_RANKS)),16,8) \
        ds_config.gradient_accumulation_steps=1 \
        ds_config.optimizer.params.betas=[0.9,0.999] ds_config.scheduler.params.cycle_min_lr=1e-6 \
        ds_config.scheduler.params.cycle_max_lr=1e-3 \
        'ds_config.zero_optimization.leaf_module.classes=["astrobio.graph_vae.Layer","astrobio.blocks.Block"]'
export TOKENIZERS_PARALLELISM := false

.PHONY: setup train train_long science run_17b test test_slow lint style types ops clean system browser

setup: $(VENV)/.installed

# The plan at its end measures, once, what every plan needs.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory system
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: '$(PYTHON) -m venv' failed; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,test,docs]'
	$(BIN)/python -m data_build fetch sample
	$(BIN)/python -m launch.ds_config.facts
	-$(BIN)/astrobio plan --model tiny --ds_config ds_configs/zero3_nvme.json > /dev/null
	@touch $@

# What pip cannot install: the headers that DeepSpeed compiles its CPU Adam and its NVMe offload against.
system:
	@headers() { echo '#include <libaio.h>' | $${CXX:-g++} -E -x c++ - > /dev/null 2>&1 && \
	  test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h"; }; \
	headers || { if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    apt-get update -qq && apt-get install -y -qq libaio-dev python3-dev > /dev/null; fi; }; \
	headers || { echo "error: the headers of libaio or Python are missing; as root:"; \
	    echo "    apt-get install libaio-dev python3-dev      (Debian, Ubuntu)"; \
	    echo "    dnf install libaio-devel python3-devel      (Fedora, RHEL)"; exit 1; }

$(SAMPLE)/manifest.json: | $(VENV)/.installed
	$(BIN)/python -m data_build build sample --out $(SAMPLE)

train: $(SAMPLE)/manifest.json
	. $(BIN)/activate && deepspeed --num_gpus $(TRAIN_RANKS) launch/train.py --ds_config ds_configs/zero3_offload.json \
	  --model tiny --set $(TINY) train.epochs=14

# Longer, for a better model; bf16 is the faster precision on most CPUs.
train_long: $(SAMPLE)/manifest.json
	. $(BIN)/activate && deepspeed --num_gpus $(TRAIN_RANKS) launch/train.py --ds_config ds_configs/zero3_offload_bf16.json \
	  --model tiny --set $(TINY) train.epochs=40

# Five seeds of the sample's four tasks beside tuned simple models: the table of docs/results.md, in 90 minutes. What
# was cut short goes on.
SEEDS ?= 0 1 2 3 4
SCIENCE := $(SEEDS:%=runs/science/seed_%)
science: $(SAMPLE)/manifest.json
	. $(BIN)/activate && for seed in $(SEEDS); do test -f runs/science/seed_$$seed/predictions-test.parquet || \
	  deepspeed --num_gpus $(TRAIN_RANKS) launch/train.py --ds_config ds_configs/zero3_offload.json --model tiny \
	  --run runs/science/seed_$$seed --resume auto --set $(TINY) train.epochs=14 train.seed=$$seed || exit 1; done
	. $(BIN)/activate && astrobio evaluate --texts $(SCIENCE) && astrobio evaluate $(SCIENCE) --json > runs/science/report.json

# All 17 B parameters for real, through NVMe: 62 GB of disk (in ASTROBIO_NVME, if set), 16 GB of memory. bf16, because
# CPUs are slow at fp16; on GPUs `PRECISION= RANKS=2` keeps the fp16 of the ds_config.
RANKS ?= 1
PRECISION ?= ds_config.fp16.enabled=false ds_config.bf16.enabled=true
run_17b: $(SAMPLE)/manifest.json
	. $(BIN)/activate && deepspeed --num_gpus $(RANKS) launch/experiments/full_size.py --model 17b_frozen \
	  --ds_config ds_configs/zero3_nvme.json --max_steps 2 --run runs/17b_frozen \
	  --set ds_config.gradient_accumulation_steps=1 $(PRECISION)

# In which the tests open the pages that the commands write.
browser:
	@there() { for name in chromium chromium-browser google-chrome; do command -v $$name && return; done; return 1; }; \
	there > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium > /dev/null 2>&1; } || \
	echo "remark: there is no Chromium, so that the tests of pages are skipped (Debian: apt-get install chromium)"

# DeepSpeed's parts compile beside the first tests, which do not need them.
test: $(SAMPLE)/manifest.json style browser
	. $(BIN)/activate && { python -m launch.zero.ops & } && python -m pytest -m "not slow and not network" && wait $$!

test_slow: $(SAMPLE)/manifest.json lint ops browser
	. $(BIN)/activate && python -m pytest -m "slow and not network"

# Training compiles those it needs by itself.
ops: $(VENV)/.installed
	. $(BIN)/activate && python -m launch.zero.ops

lint: style types

style: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --quiet --check .

types: $(VENV)/.installed
	$(BIN)/mypy

clean:
	rm -rf data/sample data/.sample* runs build .pytest_cache .ruff_cache .mypy_cache
