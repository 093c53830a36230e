#!/usr/bin/env bash
# Whether lgm-mini makes more of generated views after training on such: renders aligned training views, has mvdream-mini
# make all sides but the front, trains on from the shipped weights, and measures before and after, from the front alone
# and from four true views. One call of about 9 minutes on one H200; needs .carry/assets.tar.xz, and .whl if the machine
# lacks tyro, diffusers or accelerate.
# Variables: TUNE_SECONDS training time; LR peak learning rate; OBJECTS how many objects are generated; LIMIT_TEST test objects.
set -euo pipefail
: "${OUT:?folder for results}" "${WORK:=/tmp/tune}" "${SOURCE:=src}" "${TUNE_SECONDS:=180}" "${LR:=2e-4}" "${OBJECTS:=2205}"
: "${LIMIT_TEST:=134}" "${SHARDS:=8}"
export PYTHONPATH="$SOURCE:/tmp/site" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
mkdir -p "$WORK"
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
maquette() { python3 -m maquette.cli "$@"; }
render() { maquette data render .carry/assets.tar.xz --no-geometry --workers "$(nproc)" "$@" 2>&1 | tail -c 120; }
render --split train --plan training --aligned-probability 1 --variants 1 -o "$WORK/train"
render --split test --plan standard -o "$WORK/test"
for shard in $(seq 0 $((SHARDS - 1))); do
  python3 benchmarks/generated_inputs.py --data "$WORK/train" -o "$WORK/generated" --limit "$OBJECTS" \
    --shard "$shard/$SHARDS" > "$WORK/shard$shard.txt" 2>&1 &
done
wait
tail -c 120 "$WORK/shard0.txt"
evaluate() { maquette evaluate --data "$WORK/test" --limit "$LIMIT_TEST" --no-sheet "$@" 2>&1 | tail -n 12; }
evaluate --model lgm-mini --generator mvdream-mini -o "$OUT/before-front" &
evaluate --model lgm-mini -o "$OUT/before-true" &
maquette train lgm-mini --data "$WORK/generated" -o "$WORK/run" --init-from "$SOURCE/maquette/weights/lgm-mini.safetensors" \
  --no-use-depth --batch-size 8 --lr "$LR" --warmup-steps 50 --steps 20000 --schedule-seconds "$TUNE_SECONDS" \
  --save-every 100000 --picture-every 0 --log-every 100 --export "$WORK/tuned.safetensors" 2>&1 | tail -n 2
wait
evaluate --model lgm-mini --weights "$WORK/tuned.safetensors" --generator mvdream-mini -o "$OUT/after-front" &
evaluate --model lgm-mini --weights "$WORK/tuned.safetensors" -o "$OUT/after-true" &
wait
cp "$WORK/run/log.jsonl" "$OUT/"
split -b 15M -d "$WORK/tuned.safetensors" "$OUT/tuned.part" # two files of at most 16 MiB
