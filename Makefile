# make demo: restore, then train, score and restore at a small size.   make test: ruff and the tests.   make app: the page.
# make test-long: the slow tests.   make data: build the packs anew.   make weights: train the bundled restorer again, 16 hours.
PYTHON ?= python3
BIN := .venv/bin
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c ^GPU)
PROCESSES := $(if $(filter 1,$(GPUS)),1,2)

.PHONY: demo test test-long app data weights clean
demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/python restore.py examples runs/demo/shipped --char_from_name --compare
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node=$(PROCESSES) main_denoise_cae.py --config configs/demo.yaml
	$(BIN)/python evaluate.py --checkpoint runs/demo/best.pth --limit 512 --output_dir runs/demo/eval
	$(BIN)/python restore.py examples runs/demo/examples --compare --checkpoint runs/demo/best.pth

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0

test-long: .venv/installed-test
	$(BIN)/python -m pytest -q -m long

app: .venv/installed-app
	$(BIN)/python app.py

data: .venv/installed
	tools/fetch_fonts.sh build/fonts
	$(BIN)/python prepare_data.py build --fonts build/fonts --output data/zi.pack --overwrite
	tools/fetch_fonts.sh build/copyleft data/copyleft.yaml
	$(BIN)/python prepare_data.py build --fonts build/copyleft --manifest data/copyleft.yaml --output data/copyleft.pack --overwrite

weights: .venv/installed
	mkdir -p runs/before
	git show 7a564ca:weights/restorer_convnext_atto.safetensors > runs/before/restorer_convnext_atto.safetensors
	for stage in severe 128 224 long long_224 steady steady_224; do OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node=$(PROCESSES) \
		main_denoise_cae.py --config configs/restorer_convnext_atto_$$stage.yaml --resume auto \
		$(if $(filter 1,$(PROCESSES)),--batch_size 16) || exit 1; done
	$(BIN)/python export.py --checkpoint runs/restorer_convnext_atto_steady_224/best.pth --bias 0.2 --output weights/restorer_convnext_atto.safetensors --overwrite

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/installed-app: requirements-app.txt .venv/installed
	$(BIN)/pip install --quiet -r requirements-app.txt
	touch $@

.venv/installed-test: requirements-test.txt requirements-app.txt .venv/installed
	$(BIN)/pip install --quiet -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv runs build
