# `make demo` and `make test` are all a newcomer needs; each makes .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN ?= demo-run

# Each framework in an environment of its own, a gigabyte or two; not part of `test`.
ADAPTERS ?= hf lightning deepspeed megatron composer llm-foundry olmo-core torchtitan datatrove \
  megatron-bridge nemo $(if $(KISEKI_NANOTRON),nanotron) \
  $(if $(KISEKI_MEGATRON_DEEPSPEED),megatron-deepspeed) $(if $(KISEKI_MEGATRON_LM),megatron-lm) \
  $(if $(KISEKI_LLM_RECIPES),llm-recipes)

.PHONY: demo test needs proofs gpu-check browser test-adapters lint bench bench-report env clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("kiseki needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

env: $(VENV)/.installed

demo: env
	$(BIN)/kiseki demo $(DEMO_RUN)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes, each with whole files, so that the fixtures of a module are made once; then what must be alone on the machine.
test: needs lint browser
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not alone'
	$(BIN)/python -m pytest -m alone

needs:
	@echo "make test needs Python 3.11 or newer, 3 GB of disk for .venv, 4 GB of memory, the package registry, and for the pages a Chromium"

# The long proofs, whole: half an hour on two cores. Each adds a line to bench/history.jsonl; .ci/run takes a sample of each.
proofs: env
	$(BIN)/python bench/proofs.py

# The hook on a GPU, in at most six minutes. Where there is none it says so, and checks nothing.
gpu-check: env
	$(BIN)/python bench/gpu_check

APT := timeout 300 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20

# The browser of the tests of the pages: a Chromium of the system, which is installed where we may.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "The tests of the pages need a Chromium, and none is on PATH: installing the package chromium with apt-get"; \
	    $(APT) update && $(APT) install -y chromium >/dev/null; \
	  else false; fi; } || \
	  echo "WARNING: no chromium and no google-chrome on PATH: the tests of the pages in a browser will be skipped" >&2

# What an environment has beside kiseki, where that is not the extra of its name. The sources of the first two, and of
# Megatron-DeepSpeed, are in no package: KISEKI_LLM_RECIPES, KISEKI_MEGATRON_LM and KISEKI_MEGATRON_DEEPSPEED are the paths of checkouts.
WITH_llm-recipes := -e '.[hf]' pybind11
WITH_megatron-lm := -e '.[megatron]' einops psutil pybind11 regex six transformers triton
WITH_datatrove := datatrove
# Its package is of 2024: KISEKI_NANOTRON is the path of a checkout, KISEKI_DATATROVE that of the datatrove it reads with.
WITH_nanotron := datatrove dacite==1.9.2 datasets==5.2.0 einops==0.8.2 psutil pybind11==3.1.0 pyyaml safetensors==0.8.0 \
  transformers triton==3.9.0

.venv-adapters/%/.installed: pyproject.toml constraints.txt constraints-adapters.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 setuptools wheel
	$(@D)/bin/pip install --quiet -c constraints.txt -e . pytest pytest-timeout
	$(@D)/bin/pip install --quiet -c constraints-adapters.txt $(or $(WITH_$*),-e '.[$*]')
	touch $@

# The last deepspeed with the curriculum that cuts sequences in the model, which Megatron-DeepSpeed still has.
.venv-adapters/megatron-deepspeed/.installed: pyproject.toml constraints.txt constraints-adapters.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 setuptools wheel
	$(@D)/bin/pip install --quiet -c constraints.txt -e . pytest pytest-timeout
	$(@D)/bin/pip install --quiet -c constraints-adapters.txt -e '.[deepspeed]' einops pillow pybind11 regex six transformers
	$(@D)/bin/pip install --quiet --no-deps --no-build-isolation --target $(@D)/older-deepspeed deepspeed==0.19.6
	touch $@

# mosaicml wants a torch before 2.7.1; it runs with the one that everything else is tested with.
.venv-adapters/composer/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 'setuptools<81' torchmetrics==1.9.0 torch_optimizer==0.3.0 coolname pyyaml py-cpuinfo tabulate \
	  tqdm psutil packaging importlib-metadata mosaicml-cli==0.8.3 'pillow<12' matplotlib
	$(@D)/bin/pip install --quiet --no-deps mosaicml==0.32.1 torchvision==0.28.0
	$(@D)/bin/pip install --quiet -c constraints.txt -e . pytest pytest-timeout
	touch $@

# It wants Python 3.12, packages that want a GPU, and a megatron-core that has no wheel for another Python; it runs with ours.
.venv-adapters/megatron-bridge/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 setuptools wheel
	$(@D)/bin/pip install --quiet -c constraints.txt -e . pytest pytest-timeout
	$(@D)/bin/pip install --quiet accelerate datasets==5.2.0 einops==0.8.2 'hydra-core<1.4' ninja nvidia-ml-py omegaconf pandas \
	  psutil pulp pybind11==3.1.0 pyyaml regex requests rich scipy six tensorboard tqdm transformers==5.12.1 triton==3.9.0
	$(@D)/bin/pip install --quiet --no-deps --ignore-requires-python --no-build-isolation megatron-core==0.19.2
	$(@D)/bin/pip install --quiet --no-deps --ignore-requires-python megatron-bridge==0.6.2 nvidia-modelopt==0.47.0 peft==0.21.2
	touch $@

# NeMo 2 wants numpy before 2, which our pyarrow does not, and cuda-bindings. It brings a package named tests, before ours.
.venv-adapters/nemo/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 'setuptools<81' wheel
	$(@D)/bin/pip install --quiet -c constraints.txt -e . pytest pytest-timeout
	$(@D)/bin/pip install --quiet 'numpy==2.4.6' fsspec==2024.12.0 'huggingface_hub<1' 'protobuf~=5.29.5' 'onnx<1.20' 'numexpr<2.14' \
	  'strenum<0.5' overrides pydantic toml python-dateutil ruamel.yaml tensorboard text-unidecode tqdm wrapt cloudpickle \
	  fiddle==0.3.1 'hydra-core<1.4' omegaconf torchmetrics==1.9.0 transformers==4.57.1 einops==0.8.2 datasets==5.0.1 accelerate \
	  webdataset pyyaml sentencepiece psutil scikit-learn nemo_run==0.11.1 leptonai==0.27.3 tiktoken==0.14.0 'zarr<3' \
	  'tensorstore<0.1.72' defusedxml wget
	$(@D)/bin/pip install --quiet --no-deps nemo_toolkit==2.7.3 megatron-core==0.15.3 lightning==2.4.0 pytorch-lightning==2.6.6 \
	  lightning-utilities==0.15.3 nv_one_logger_core==2.3.1 nv_one_logger_training_telemetry==2.3.1 \
	  nv_one_logger_pytorch_lightning_integration==2.3.1 nvidia-modelopt==0.37.0 nvidia-resiliency-ext==0.4.1 peft==0.17.1 \
	  torchprofile==0.1.0 pulp nvidia-ml-py
	rm -r $(@D)/lib/python3*/site-packages/tests
	touch $@

# llm-foundry wants a torch before 2.7.1 too, and a transformers that wants other versions than ours: those come last.
.venv-adapters/llm-foundry/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0 'setuptools<81'
	$(@D)/bin/pip install --quiet -c constraints.txt -e . pytest pytest-timeout
	$(@D)/bin/pip install --quiet torchmetrics==1.9.0 torch_optimizer==0.3.0 coolname pyyaml py-cpuinfo tabulate tqdm psutil \
	  mosaicml-cli==0.8.3 'pillow<12' matplotlib transformers==4.51.3 datasets==3.6.0 accelerate==1.8.1 'huggingface_hub<1' \
	  mlflow-skinny==2.22.1 omegaconf einops==0.8.1 beautifulsoup4 catalogue boto3 Brotli xxhash zstd paramiko python-snappy \
	  GitPython pandas
	$(@D)/bin/pip install --quiet --no-deps mosaicml==0.32.1 mosaicml-streaming==0.12.0 llm-foundry==0.22.0 mlflow==2.22.1 \
	  torchvision==0.28.0
	touch $@

test-adapters: $(ADAPTERS:%=.venv-adapters/%/.installed)
	for name in $(ADAPTERS); do .venv-adapters/$$name/bin/python -m pytest tests/adapters/test_$$(echo $$name | tr - _).py || exit 1; done

# What each bench measured over the commits.
bench-report: env
	$(BIN)/python bench/report.py

bench: env
	@ls -d bench/*.py bench/gpu_check | sed 's/^/  $(subst /,\/,$(BIN))\/python /'

clean:
	rm -rf $(VENV) .venv-adapters $(DEMO_RUN) .mypy_cache .ruff_cache .pytest_cache .hypothesis
