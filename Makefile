# make demo      label captures with the weights of this repository, then pretrain and fine-tune for two minutes
# make test      lint, and the tests that are not marked slow (minutes)
# make test-all  those, and then the slow ones
# make bench     measure this machine (minutes)

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := demo_output
# One process a core; the tests of a file stay together, as they share what its fixtures make.
PYTEST := $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile --durations 10
# What the demo labels: real captures, where the project's are beside the repository, else two scenes of its own.
RECORDINGS := ../shared/data/recordings
CAPTURES := $(wildcard $(RECORDINGS)/lte-f1815.3-s19.2-bw20-0.08s-hackrf.sigmf-meta \
	$(RECORDINGS)/nr-srsran-n78-20MHz-23.04Msps.sigmf-meta)
# Clean frames of 5G NR and LTE: of other scenes a minute teaches nothing.
FRAMES := --front_end grid --channels power,cp --preset classic --set duration_ms=20 snr_db=10,40

.PHONY: demo test test-all bench clean

demo: $(VENV)/.installed $(if $(CAPTURES),,$(DEMO)/air)
	$(RUN) main_segment.py $(or $(CAPTURES),$(DEMO)/air/iq) --weights weights/radio_seg_vit_tiny.safetensors \
		--output $(DEMO)/labelled --truth
	@echo
	@echo "Labelled: look at $(DEMO)/labelled. Now a short training shows how such a model is made; the weights took longer."
	$(RUN) main_synthesize.py --output $(DEMO)/scenes $(FRAMES) --train 320 --val 32 --test 64
	$(RUN) main_pretrain.py --data_path $(DEMO)/scenes --init weights/radio_mae_vit_tiny.safetensors --batch_size 16 \
		--epochs 3 --warmup_epochs 1 --blr 4e-3 --num_workers 0 --save_every_epochs 3 --output_dir $(DEMO)/pretrain
	$(RUN) main_finetune.py --task segmentation --data_path $(DEMO)/scenes \
		--finetune weights/radio_mae_vit_tiny.safetensors --recipe few --epochs 5 --num_workers 0 --output_dir $(DEMO)/finetune
	@echo
	@echo "Look at $(DEMO)/labelled (waterfall, class map, annotations of each capture), $(DEMO)/scenes/contact_sheet.png"
	@echo "(labelled scenes of 5G NR and LTE), $(DEMO)/pretrain/reconstruction.png (original, masked, reconstructed: a"
	@echo "minute of training on top of the weights), $(DEMO)/finetune/predictions.png (spectrogram, truth, prediction), confusion.png and"
	@echo "results.json beside it; curves: $(VENV)/bin/tensorboard --logdir $(DEMO)"

$(DEMO)/air: | $(VENV)/.installed
	$(RUN) main_synthesize.py --output $@ --iq only --train 0 --val 0 --test 2 --seed 3 \
		--set duration_ms=40 snr_db=15,40 noise_only=0

test: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

bench: $(VENV)/.installed-bench
	$(RUN) benchmarks/bench.py

clean:
	rm -rf $(VENV) $(DEMO)

# Debian and Ubuntu keep ensurepip, which venv needs, in a package of its own.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && apt-get install -q -y python3-venv; \
		else echo "error: venv is missing: sudo apt install python3-venv" >&2; exit 2; fi; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install -q -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install -q -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed
	$(RUN) -m pip install -q -r requirements-bench.txt
	@touch $@
