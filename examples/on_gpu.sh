#!/usr/bin/env bash
# All work that wants a CUDA device, in parts of under 10 minutes each:
#
#   OUT=runs/gpu bash examples/on_gpu.sh tests
#   OUT=runs/gpu bash examples/on_gpu.sh steps
#   OUT=runs/gpu bash examples/on_gpu.sh figures
#   OUT=runs/gpu bash examples/on_gpu.sh evaluation
#
# GPU tests, the loss kernel and the time to erase; time and memory of a training step, with
# gradient checkpointing, compiled, in 4 bits and with low_vram; the figures of unlearning; every
# attack on one adapter. Results land in $OUT: device.txt, gpu_tests.txt, results-*.json
# (`python -m examples.benchmarks.all --render` puts one into the docs), figures.md and .json,
# evaluation.json, report.md and report.html. Wheels in wheels/ are installed first,
# for machines without a network; 4 bits need bitsandbytes there.
set -eu
PART=${1:?tests, steps, figures or evaluation}
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
if [ -d wheels ]; then pip install -q --no-index --find-links wheels --no-deps wheels/*.whl; fi
pip install -q --no-deps --no-build-isolation -e .
python3 -c "import torch; print(torch.cuda.get_device_name(), torch.__version__)" > "$OUT/device.txt"
date -u +%F >> "$OUT/device.txt"
failed=0
benchmark() {
    cp docs/benchmarks.md "$OUT/benchmarks.md"
    python3 -m examples.benchmarks.all --only "$1" --out "$OUT/results-$1.json" \
        --docs "$OUT/benchmarks.md" > "$OUT/$1.txt" 2>&1 || failed=$?
    tail -n 5 "$OUT/$1.txt"
}
case $PART in
tests)
    python3 -m pytest -q tests/test_gpu.py tests/test_fused.py tests/test_quantised.py \
        > "$OUT/gpu_tests.txt" 2>&1 || failed=$?
    tail -n 30 "$OUT/gpu_tests.txt"
    benchmark loss_kernel
    benchmark time_to_erase
    ;;
steps)
    benchmark train_step
    ;;
figures)
    python3 examples/measure_emoji.py --output "$OUT/figures.json" --device cuda \
        > "$OUT/figures.md" || failed=$?
    cat "$OUT/figures.md"
    ;;
evaluation)
    adapter=$(mktemp -d)
    python3 -m diffusers_fdu unlearn --model emoji --target dog --anchor cat \
        --output-dir "$adapter" --device cuda || failed=$?
    python3 -m diffusers_fdu evaluate "$adapter" --attack all --report "$adapter/report" \
        --device cuda || failed=$?
    cp "$adapter"/report/evaluation.json "$adapter"/report/report.* "$OUT" || failed=$?
    ;;
esac
exit "$failed"  # after everything was tried
