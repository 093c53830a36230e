#!/usr/bin/env bash
# Tests and times the CUDA scan and Gamba on a lent GPU machine, beside mamba-ssm's kernels where their sources lie in .mamba
# (csrc/selective_scan and a build.py that leaves selective_scan_cuda.so in .mamba/build; ours to use, not to ship).
#   COMMIT=HASH benchmarks/device/bench_scan.sh     results in $OUT: scan_cuda.* and gamba_cuda.* (json,
#                                                   md), tests.txt, chunks.txt (times by number of chunks), the built module
set -euo pipefail
: "${OUT:?folder for results}"
export PYTHONPATH="src:/tmp/site" PYTHONUNBUFFERED=1
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
if [ -f .mamba/build.py ] && [ ! -d .mamba/build ]; then
  MAX_JOBS=12 timeout 300 python3 .mamba/build.py > "$OUT/build.txt" 2>&1 || true
  tail -n 3 "$OUT/build.txt"
fi
if [ -f .mamba/build/selective_scan_cuda.so ]; then
  export MAQUETTE_MAMBA=.mamba/build
  cp .mamba/build/selective_scan_cuda.so "$OUT/"
fi
python3 -m pytest -q -m gpu tests/test_selective_scan_cuda.py tests/test_causal_conv.py tests/test_gamba_network.py > "$OUT/tests.txt" 2>&1 || true
tail -n 12 "$OUT/tests.txt"
python3 benchmarks/device/tune_scan.py 2>&1 | tee "$OUT/chunks.txt" || true
python3 -m maquette.cli bench scan --device cuda -o "$OUT" ${COMMIT:+--commit "$COMMIT"}
python3 -m maquette.cli bench gamba --device cuda -o "$OUT" ${COMMIT:+--commit "$COMMIT"}
