#!/usr/bin/env bash
# All work that wants a CUDA device, in one call of under 10 minutes:
#
#   OUT=runs/gpu ART=art bash examples/on_gpu.sh
#
# GPU tests, the loss kernel timed, more training of the embedded model (at most MINUTES, from the shipped weights, or
# from the checkpoint in $OUT/emoji if there is one), the figures of unlearning. Results land in
# $OUT: gpu_tests.txt, loss_kernel.md, weights/ (copy over diffusers_fdu/emoji/weights), figures.json, device.txt.
# Wheels in wheels/ are installed first, for machines without a network.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu} ART=${ART:-art} MINUTES=${MINUTES:-6} STEPS=${STEPS:-20000}
mkdir -p "$OUT"
if [ -d wheels ]; then pip install -q --no-index --find-links wheels --no-deps wheels/*.whl; fi
pip install -q --no-deps --no-build-isolation -e .
python3 -c "import torch; print(torch.cuda.get_device_name(), torch.__version__)" > "$OUT/device.txt"
date -u +%F >> "$OUT/device.txt"
tests=0
python3 -m pytest -q tests/test_gpu.py tests/test_fused.py > "$OUT/gpu_tests.txt" 2>&1 || tests=$?
tail -n 30 "$OUT/gpu_tests.txt"
python3 examples/benchmarks/loss_kernel.py --output "$OUT/loss_kernel.json" \
    > "$OUT/loss_kernel.md" || echo "loss kernel not timed: $?"
python3 examples/train_emoji.py --art "$ART" --work-dir "$OUT/emoji" --output-dir "$OUT/weights" \
    --continue-shipped --steps "$STEPS" --minutes "$MINUTES" || echo "training not finished: $?"
python3 examples/measure_emoji.py --output "$OUT/figures.json" > "$OUT/figures.md"
cat "$OUT/figures.md"
exit "$tests"  # of the GPU tests, after everything else was done
