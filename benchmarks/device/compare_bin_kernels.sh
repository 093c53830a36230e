#!/usr/bin/env bash
# Kernel times of the binning kernels with other limits of registers and numbers of pairs at once, on a lent GPU machine.
#   benchmarks/device/compare_bin_kernels.sh "256:4" "256, 6:8" ...    launch bounds and AT_ONCE of each variant
set -euo pipefail
: "${OUT:?folder for results}"
for variant in "$@"; do
  folder=$(mktemp -d)
  cp -r src "$folder/src"
  bin="$folder/src/maquette/raster/gaussian_bin.cu"
  sed -i "s/__launch_bounds__(256)/__launch_bounds__(${variant%%:*})/; s/AT_ONCE = [0-9]*/AT_ONCE = ${variant##*:}/" "$bin"
  echo "== launch bounds ${variant%%:*}, at once ${variant##*:}"
  PYTHONPATH="$folder/src:/tmp/site" timeout 60 python3 benchmarks/device/time_raster_kernels.py -o "$folder" \
    | grep -E "lgm_big|project_and|write_pairs|^total|^forward" | tee -a "$OUT/compare.txt"
done
