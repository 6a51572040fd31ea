#!/usr/bin/env bash
# All work that wants a CUDA device, in one call of under 10 minutes:
#
#   OUT=runs/gpu bash examples/on_gpu.sh
#
# GPU tests, the benchmarks, the figures of unlearning. Results land in $OUT: device.txt,
# gpu_tests.txt, results.json (`python -m examples.benchmarks.all --render` puts it into the docs),
# benchmarks.md and .txt, figures.md and .json. Wheels in wheels/ are installed
# first, for machines without a network.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
if [ -d wheels ]; then pip install -q --no-index --find-links wheels --no-deps wheels/*.whl; fi
pip install -q --no-deps --no-build-isolation -e .
python3 -c "import torch; print(torch.cuda.get_device_name(), torch.__version__)" > "$OUT/device.txt"
date -u +%F >> "$OUT/device.txt"
failed=0
python3 -m pytest -q tests/test_gpu.py tests/test_fused.py > "$OUT/gpu_tests.txt" 2>&1 || failed=$?
tail -n 30 "$OUT/gpu_tests.txt"
cp docs/benchmarks.md "$OUT/benchmarks.md"
python3 -m examples.benchmarks.all --out "$OUT/results.json" --docs "$OUT/benchmarks.md" \
    > "$OUT/benchmarks.txt" 2>&1 || failed=$?
tail -n 5 "$OUT/benchmarks.txt"
python3 examples/measure_emoji.py --output "$OUT/figures.json" --device cuda \
    > "$OUT/figures.md" || failed=$?
cat "$OUT/figures.md"
exit "$failed"  # after everything was tried
