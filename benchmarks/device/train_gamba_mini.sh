#!/usr/bin/env bash
# The training of gamba-mini on a GPU machine that is lent in calls of ten minutes. A first call renders the training views
# (with depth) and may compare options; a second starts the training, which outlives its call; further calls wait for it
# and bring home weights, logs and pictures in $OUT.
#   STAGE=compare benchmarks/device/train_gamba_mini.sh "--lr 1e-3" "--lr 2e-3" ...   one GPU each, pictures of 128 px, or
#                       with INIT continued from there at 256 px; each measured on the validation split
#   STAGE=train benchmarks/device/train_gamba_mini.sh     128 px from random weights, then 256 px; options as arguments
#   STAGE=wait benchmarks/device/train_gamba_mini.sh
# Variables:
#   SECONDS_1, SECONDS_2   training time of the two phases: each one's cosine ends there
#   INIT                   weights to continue from at 256 px; the first phase is left out
#   COMPARE_SECONDS        training time of each comparison
#   GPUS, BATCH_1, BATCH_2 processes, and objects of each per step
#   RENDER                 further options for the training views
#   WORK, RUN              folders of the data and of the run
#   LIMIT                  seconds after which this call has ended (calls end at 600)
set -euo pipefail
: "${OUT:?folder for results}" "${STAGE:?compare, train or wait}" "${ASSETS:=.carry/assets.tar.xz}" "${GPUS:=4}" "${LIMIT:=585}" "${WORK:=/tmp/maquette}"
: "${SECONDS_1:=300}" "${SECONDS_2:=800}" "${COMPARE_SECONDS:=75}" "${BATCH_1:=64}" "${BATCH_2:=16}" "${SOURCE:=src}"
: "${INIT:=}" "${RUN:=$WORK/gamba}" "${RENDER:=--no-geometry --reshape-probability 0.5 --aligned-probability 0.7}"
export PYTHONPATH="$SOURCE:/tmp/site" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8 SECONDS_1 SECONDS_2 BATCH_1 BATCH_2 GPUS WORK RUN INIT
began=$(date +%s)
mkdir -p "$RUN"
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
if [ ! -f "$WORK/train.done" ]; then
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  python3 -m maquette.cli data render "$ASSETS" -o "$WORK/train" --split train --plan training $RENDER \
    --workers $(($(nproc) * 3 / 4)) 2>&1 | tail -c 200
  touch "$WORK/train.done"
  cp "$WORK/train/contact.png" "$OUT/"
  echo "data ready after $(($(date +%s) - began)) s"
fi
cat > "$RUN/train.sh" <<'PHASES'
set -e
common=(gamba-mini --data "$WORK/train" --save-every 2000 --picture-every 1000 --log-every 50)
[ -n "$INIT" ] || torchrun --standalone --nproc_per_node="$GPUS" -m maquette.cli train "${common[@]}" -o "$RUN/phase1" \
  --input-size 128 --batch-size "$BATCH_1" --steps 6000 --schedule-seconds "$SECONDS_1" \
  --export "$RUN/phase1.safetensors" "$@"
torchrun --standalone --nproc_per_node="$GPUS" -m maquette.cli train "${common[@]}" -o "$RUN/phase2" --lr 7e-4 \
  --warmup-steps 200 --batch-size "$BATCH_2" --steps 20000 --schedule-seconds "$SECONDS_2" \
  --init-from "${INIT:-$RUN/phase1.safetensors}" --export "$RUN/gamba-mini.safetensors" "$@"
PHASES
case "$STAGE" in
  compare)
    number=0
    [ -d "$WORK/val" ] || python3 -m maquette.cli data render "$ASSETS" -o "$WORK/val" --split val --plan standard \
      --workers $(($(nproc) * 3 / 4)) 2>&1 | tail -c 100
    start=(--input-size 128 --batch-size "$BATCH_1")
    [ -z "$INIT" ] || start=(--init-from "$INIT" --batch-size "$BATCH_2")
    for options in "$@"; do
      export CUDA_VISIBLE_DEVICES=$number weights="$RUN/compare$number.safetensors"
      # shellcheck disable=SC2086
      { python3 -m maquette.cli train gamba-mini --data "$WORK/train" -o "$RUN/compare$number" "${start[@]}" \
        --steps 3000 --warmup-steps 100 --schedule-seconds "$COMPARE_SECONDS" --export "$weights" \
        --log-every 50 --picture-every 0 --save-every 100000 $options \
        && python3 -m maquette.cli evaluate --model gamba-mini --weights "$weights" --data "$WORK/val" --split val --no-sheet \
          -o "$RUN/compare$number/val"; } > "$OUT/compare$number.txt" 2>&1 &
      number=$((number + 1))
    done
    wait
    for file in "$OUT"/compare*.txt; do echo "$file"; tail -n 12 "$file"; done
    ;;
  train) setsid bash "$RUN/train.sh" "$@" > "$RUN/train.txt" 2>&1 < /dev/null & echo $! > "$RUN/pid" ;;&
  train | wait)
    while kill -0 "$(cat "$RUN/pid")" 2>/dev/null && [ $(($(date +%s) - began)) -lt "$LIMIT" ]; do sleep 2; done
    tail -n 3 "$RUN/train.txt"
    cp "$RUN/train.txt" "$OUT/"
    for phase in phase1 phase2; do
      [ ! -f "$RUN/$phase/log.jsonl" ] || cp "$RUN/$phase/log.jsonl" "$OUT/log-$phase.jsonl"
    done
    ls -t "$RUN"/phase*/pictures/*.png 2>/dev/null | head -n 1 | xargs -r -I{} cp {} "$OUT/predictions.png"
    # The best weights there are, for the case that the machine is lost before the end.
    for file in gamba-mini phase1; do
      if [ -f "$RUN/$file.safetensors" ]; then cp "$RUN/$file.safetensors" "$OUT/"; break; fi
    done
    ;;
esac
echo "call took $(($(date +%s) - began)) s"
