#!/usr/bin/env bash
# Tests and times the CUDA Gaussian rasterizer on a lent GPU machine, beside gsplat where its wheel lies in .whl and beside
# the official rasterizer where its sources lie in .carry/diff-gaussian-rasterization.tar.xz (with setup.py at the top and
# glm in third_party; not ours to pass on: non-commercial).
#   PARTS="tests stages official bench step" COMMIT=HASH benchmarks/device/bench_raster.sh    results in $OUT: tests.txt,
#                                  stages.txt and raster_kernels.json (every kernel's time), official.txt (how it was built),
#                                  raster_cuda.* (json, md, png), step_cuda.* (json, md: a training step by stage)
set -uo pipefail
: "${OUT:?folder for results}" "${PARTS:=tests stages official bench step}" "${COMMIT:=unknown}"
: "${OFFICIAL:=.carry/diff-gaussian-rasterization.tar.xz}"
export PYTHONPATH="src:/tmp/site:/tmp/official" PYTHONUNBUFFERED=1
began=$(date +%s)
say() { echo "== $* ($(($(date +%s) - began)) s)"; }
has_tyro() { python3 -c "import tyro" 2> /dev/null; }
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
  timeout 120 python3 benchmarks/device/time_raster_kernels.py -o "$OUT" --commit "$COMMIT" > "$OUT/stages.txt" 2>&1
  say stages; tail -n 24 "$OUT/stages.txt"
esac
case " $PARTS " in *" official "*)
  if [ -f "$OFFICIAL" ]; then
    rm -rf /tmp/official; mkdir -p /tmp/official; tar xJf "$OFFICIAL" -C /tmp/official
    # what newer versions of torch deprecate
    sed -i -E 's/\.data<(float|int|bool)>\(\)/.data_ptr<\1>()/; s/AT_ERROR\(/TORCH_CHECK(false, /' /tmp/official/rasterize_points.cu
    (cd /tmp/official && TORCH_CUDA_ARCH_LIST=9.0 MAX_JOBS=8 timeout 240 python3 setup.py build_ext --inplace) > "$OUT/official.txt" 2>&1
    if ! python3 -c "import torch, diff_gaussian_rasterization" >> "$OUT/official.txt" 2>&1; then
      rm -rf /tmp/official; grep -iE "error" "$OUT/official.txt" | cut -c1-200 | head -n 8; tail -n 8 "$OUT/official.txt"
    fi
  else
    echo "no $OFFICIAL: the official rasterizer is left out"
  fi
  say official
esac
case " $PARTS " in *" bench "*)
  if has_tyro; then bench=(-m maquette.cli bench raster); else bench=(benchmarks/raster.py); fi
  timeout 300 python3 "${bench[@]}" --device cuda -o "$OUT" --commit "$COMMIT" > "$OUT/bench.txt" 2>&1
  say bench; grep -E "\||Agreement|^- |left out" "$OUT/bench.txt" || tail -n 12 "$OUT/bench.txt"
esac
case " $PARTS " in *" step "*)
  if has_tyro; then step=(-m maquette.cli bench step); else step=(benchmarks/step.py); fi
  timeout 200 python3 "${step[@]}" --device cuda -o "$OUT" --commit "$COMMIT" > "$OUT/step.txt" 2>&1
  say step; grep -E "\|" "$OUT/step.txt" || tail -n 12 "$OUT/step.txt"
esac
