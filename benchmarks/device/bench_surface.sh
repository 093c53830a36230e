#!/usr/bin/env bash
# Times surfaces on a lent GPU machine: Gaussians to a textured GLB, and refinement by normals.
#   COMMIT=HASH benchmarks/device/bench_surface.sh    results in $OUT: convert_cuda.*, refine_cuda.* and
#                                                     refine_seen_cuda.* (json, md), logs
# Variables:
#   WHEELS    folder with wheels that the machine lacks (xatlas, fast-simplification, tyro and what it needs)
#   ASSETS    archive or folder with the test assets
#   IDS       of the objects to refine, those of refine.py if not given
#   VIEWS     folders of views to convert; SETS: few, all or both, as of convert.py
#   THREADS   of the CPU, at most as many as it has cores
#   ROOT      where benchmarks/, examples/ and src/ lie
set -euo pipefail
: "${OUT:?folder for results}" "${WHEELS:=.whl-surface}" "${ASSETS:=.carry/assets.tar.xz}" "${ROOT:=.}"
# shellcheck disable=SC2086
: "${SETS:=few all}" "${VIEWS:=$ROOT/examples/taxi $ROOT/examples/cactus}"
export PYTHONPATH="$ROOT/src:/tmp/site" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${THREADS:-16} NUMBA_NUM_THREADS=${THREADS:-16}
if [ -d "$WHEELS" ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site "$WHEELS"/*.whl
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 -c "import numba, numpy, scipy, skimage, torch; print(*(m.__name__ + ' ' + m.__version__ for m in (numba, numpy, scipy, skimage, torch)))"
read -ra views <<< "$VIEWS"
read -ra ids <<< "${IDS:+--ids $IDS}"
timeout 150 python3 "$ROOT/benchmarks/convert.py" --device cuda --views "${views[@]}" --sets $SETS -o "$OUT" ${COMMIT:+--commit "$COMMIT"} \
  > "$OUT/convert.log" 2>&1 || echo "convert.py failed"
tail -n 14 "$OUT/convert.log"
for seen in "" --seen; do
  timeout 400 python3 "$ROOT/benchmarks/refine.py" --device cuda --assets "$ASSETS" $seen ${ids[@]+"${ids[@]}"} -o "$OUT" \
    ${COMMIT:+--commit "$COMMIT"} > "$OUT/refine$seen.log" 2>&1 || echo "refine.py $seen failed"
  tail -n 14 "$OUT/refine$seen.log"
done
