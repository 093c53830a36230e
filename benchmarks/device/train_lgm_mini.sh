#!/usr/bin/env bash
# One call of the training of lgm-mini on a GPU machine that is lent for ten minutes at a time. Renders the training
# views once per machine, trains until LIMIT seconds after its start (call again to continue), evaluates, and leaves
# weights, logs and pictures in $OUT.
#   GPUS=4 LIMIT=560 STEPS=20000 benchmarks/device/train_lgm_mini.sh [options of `maquette train`]
set -euo pipefail
: "${OUT:?folder for results}" "${GPUS:=1}" "${LIMIT:=560}" "${STEPS:=20000}" "${WORK:=/tmp/maquette}" "${EVALUATE:=1}"
export PYTHONPATH="src:/tmp/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8
began=$(date +%s)
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
workers=$(($(nproc) * 3 / 4))
render() { python3 -m maquette.cli data render .carry/assets.tar.xz -o "$1" --no-geometry --workers "$workers" "${@:2}" 2>&1 | tail -c 300; }
[ -f "$WORK/train.done" ] || { render "$WORK/train" --split train --plan training; touch "$WORK/train.done"; cp "$WORK/train/contact.png" "$WORK/train/failures.json" "$OUT/" || true; }
[ -f "$WORK/test.done" ] || { render "$WORK/test" --split test; touch "$WORK/test.done"; }
echo "data ready after $(($(date +%s) - began)) s"
left=$((LIMIT - ($(date +%s) - began) - 20))
torchrun --standalone --nproc_per_node="$GPUS" -m maquette.cli train lgm-mini --data "$WORK/train" -o "$WORK/run" \
  --steps "$STEPS" --max-seconds "$left" --save-every 100000 --picture-every 2000 --log-every 100 \
  --export "$OUT/lgm-mini.safetensors" "$@" 2>&1 | tail -n 60
last=$(ls -d "$WORK"/run/checkpoints/step-* | tail -n 1)
split -b 15000000 "$last/ema.safetensors" "$OUT/ema-part-"
ls -t "$WORK"/run/pictures/*.png 2>/dev/null | head -n 1 | xargs -r -I{} cp {} "$OUT/predictions.png" || true
if [ "$EVALUATE" = 1 ]; then
  python3 -m maquette.cli evaluate --model lgm-mini --weights "$OUT/lgm-mini.safetensors" --data "$WORK/test" --split test \
    -o "$WORK/evaluation" 2>&1 | tail -n 30
  cp "$WORK/evaluation/report.json" "$OUT/report.json"
  ls "$WORK"/evaluation/*.png | head -n 1 | xargs -r -I{} cp {} "$OUT/sheet.png"
fi
echo "call took $(($(date +%s) - began)) s"
