#!/usr/bin/env bash
# Trains gamba-mini on from its weights several times side by side, one GPU each, with the options given for each; the
# validation split decides which to keep. On machines that are lent in calls of ten minutes:
#   STAGE=train benchmarks/device/tune_gamba_mini.sh "--seed 1" "--seed 2 --lr 7e-4" ...    renders, starts all of them
#   STAGE=bring benchmarks/device/tune_gamba_mini.sh    after SLEEP seconds, the newest weights and logs of each
# Variables:
#   FIRST_GPU                 number of the first run's GPU; the others follow
#   RUN_SECONDS               training time: the cosine ends there
#   ASSETS, RENDER, WORK      as in train_gamba_mini.sh; INIT: weights to go on from
set -euo pipefail
: "${OUT:?folder for results}" "${STAGE:?train or bring}" "${ASSETS:=.carry/assets.tar.xz}" "${WORK:=/tmp/maquette/gamba}"
: "${RUN_SECONDS:=1300}" "${FIRST_GPU:=0}" "${BATCH:=40}" "${SOURCE:=src}" "${INIT:=$SOURCE/maquette/weights/gamba-mini.safetensors}"
: "${RENDER:=--no-geometry --variants 6 --reshape-probability 0.7 --aligned-probability 0.8}" "${SLEEP:=0}"
export PYTHONPATH="$SOURCE:/tmp/site" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
began=$(date +%s)
mkdir -p "$WORK"
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
case "$STAGE" in
  train)
    # shellcheck disable=SC2086
    python3 -m maquette.cli data render "$ASSETS" -o "$WORK/train" --split train --plan training $RENDER \
      --workers "$(nproc)" 2>&1 | tail -c 120
    cp "$WORK/train/contact.png" "$OUT/"
    echo "data ready after $(($(date +%s) - began)) s"
    number=0
    for options in "$@"; do
      run="$WORK/run$number"
      # shellcheck disable=SC2086
      CUDA_VISIBLE_DEVICES=$((FIRST_GPU + number)) setsid python3 -m maquette.cli train gamba-mini --data "$WORK/train" \
        -o "$run" --init-from "$INIT" --batch-size "$BATCH" --steps 30000 --warmup-steps 200 --schedule-seconds "$RUN_SECONDS" \
        --save-every 2000 --picture-every 2000 --log-every 100 --export "$run.safetensors" $options > "$run.txt" 2>&1 < /dev/null &
      number=$((number + 1))
    done
    ;;
  bring)
    sleep "$SLEEP"
    for log in "$WORK"/run*.txt; do
      run="${log%.txt}"
      tail -n 1 "$log" | tr '\r' '\n' | tail -n 1 | cut -c 1-240
      [ ! -f "$run.safetensors" ] || cp "$run.safetensors" "$OUT/"
    done
    (cd "$WORK" && tar czf "$OUT/logs.tgz" run*.txt run*/log.jsonl)
    ;;
esac
echo "call took $(($(date +%s) - began)) s"
