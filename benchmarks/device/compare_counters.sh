#!/usr/bin/env bash
# Times of the rasterizer's binning kernels with other numbers of counters per tile (COPIES), on a lent GPU machine.
#   benchmarks/device/compare_counters.sh 1 8 16 32    results also in $OUT/counters.txt
set -euo pipefail
: "${OUT:?folder for results}"
for copies in "$@"; do
  folder=$(mktemp -d)
  cp -r src "$folder/src"
  sed -i "s/COPIES = [0-9]*/COPIES = $copies/" "$folder"/src/maquette/raster/{gaussian_bin.cu,cuda_bins.py}
  echo "== $copies counters per tile"
  PYTHONPATH="$folder/src:/tmp/site" timeout 60 python3 benchmarks/device/time_raster_kernels.py -o "$folder" \
    | grep -E "lgm_big|project_and|allocate|write_pairs|^total|^forward"
done | tee "$OUT/counters.txt"
