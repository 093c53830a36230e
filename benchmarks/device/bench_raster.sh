#!/usr/bin/env bash
# Tests and times the CUDA Gaussian rasterizer on a lent GPU machine, beside gsplat where its wheel lies in .whl.
#   PARTS="tests stages bench" COMMIT=HASH benchmarks/device/bench_raster.sh    results in $OUT: tests.txt, stages.txt
#                                  and raster_kernels.json (every kernel's time), raster_cuda.* (json, md, png)
set -uo pipefail
: "${OUT:?folder for results}" "${PARTS:=tests stages bench}" "${COMMIT:=unknown}"
export PYTHONPATH="src:/tmp/site" PYTHONUNBUFFERED=1
began=$(date +%s)
say() { echo "== $* ($(($(date +%s) - began)) s)"; }
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
case " $PARTS " in *" tests "*)
  timeout 200 python3 -m pytest -q --maxfail=10 -m gpu -p no:cacheprovider tests/test_raster_cuda.py \
    tests/test_raster_gaussians.py tests/test_raster_features.py tests/test_raster_mesh.py tests/test_raster_shading.py > "$OUT/tests.txt" 2>&1
  say tests; grep -E "^(FAILED|ERROR|E  )|passed|failed" "$OUT/tests.txt" | cut -c1-200 | tail -n 24
esac
case " $PARTS " in *" stages "*)
  timeout 120 python3 benchmarks/device/time_raster_kernels.py -o "$OUT" > "$OUT/stages.txt" 2>&1
  say stages; tail -n 24 "$OUT/stages.txt"
esac
case " $PARTS " in *" bench "*)
  if python3 -c "import tyro" 2> /dev/null; then bench=(-m maquette.cli bench raster); else bench=(benchmarks/raster.py); fi
  timeout 200 python3 "${bench[@]}" --device cuda -o "$OUT" --commit "$COMMIT" > "$OUT/bench.txt" 2>&1
  say bench; grep -E "\||Agreement|^- " "$OUT/bench.txt" || tail -n 12 "$OUT/bench.txt"
esac
