# make demo   pretrain for two minutes on a recording made here, and show what was learnt
# make test   lint and test
# make bench  measure this machine (minutes)

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := demo_output

.PHONY: demo test bench clean

demo: $(VENV)/.installed
	$(RUN) demo/make_recording.py $(DEMO)/recording
	$(RUN) main_pretrain.py --data_path $(DEMO)/recording --model mae_vit_tiny_patch16 --window_ms 8 --batch_size 16 \
		--epochs 36 --warmup_epochs 3 --blr 1.6e-2 --val_fraction 0.2 --save_every_epochs 12 --output_dir $(DEMO)/pretrain
	@echo
	@echo "Look at $(DEMO)/pretrain/reconstruction.png (original, masked, reconstructed), $(DEMO)/pretrain/log.txt (losses),"
	@echo "and $(DEMO)/recording/ (the SigMF recording); curves: $(VENV)/bin/tensorboard --logdir $(DEMO)/pretrain"

test: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(RUN) -m pytest

bench: $(VENV)/.installed-bench
	$(RUN) benchmarks/bench_data.py
	$(RUN) benchmarks/bench_pretrain.py

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
