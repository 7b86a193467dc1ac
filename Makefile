# make demo   make labelled scenes, pretrain and fine-tune on them for five minutes, and show what was learnt
# make test   lint and test
# make bench  measure this machine (minutes)

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := demo_output

.PHONY: demo test bench clean

demo: $(VENV)/.installed
	$(RUN) main_synthesize.py --output $(DEMO)/scenes --preset classic --set snr_db=5,40 --train 600 --val 60 --test 120
	$(RUN) main_pretrain.py --data_path $(DEMO)/scenes --model mae_vit_tiny_patch16 --batch_size 16 --epochs 10 \
		--warmup_epochs 1 --blr 1.6e-2 --num_workers 0 --save_every_epochs 10 --output_dir $(DEMO)/pretrain
	$(RUN) main_finetune.py --task segmentation --data_path $(DEMO)/scenes --model vit_tiny_patch16 \
		--finetune $(DEMO)/pretrain/checkpoint-last.pth --batch_size 16 --epochs 10 --warmup_epochs 1 --blr 1.6e-2 --layer_decay 1 \
		--num_workers 0 --output_dir $(DEMO)/finetune
	@echo
	@echo "Look at $(DEMO)/scenes/contact_sheet.png (labelled scenes of 5G NR and LTE), $(DEMO)/pretrain/reconstruction.png"
	@echo "(original, masked, reconstructed), $(DEMO)/finetune/predictions.png (spectrogram, truth, prediction), confusion.png"
	@echo "and results.json beside it; curves: $(VENV)/bin/tensorboard --logdir $(DEMO)"

test: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(RUN) -m pytest

bench: $(VENV)/.installed-bench
	$(RUN) benchmarks/bench_data.py
	$(RUN) benchmarks/bench_synthesize.py
	$(RUN) benchmarks/bench_pretrain.py
	$(RUN) benchmarks/bench_distributed.py
	$(RUN) benchmarks/bench_segment.py

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
