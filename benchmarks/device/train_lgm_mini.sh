#!/usr/bin/env bash
# One call of the training of lgm-mini on a GPU machine that is lent for ten minutes at a time. Renders the training
# views (with depth) once per machine, trains until LIMIT seconds after its start, and leaves weights, logs and pictures
# in $OUT. The same call again continues; a phase that is over is not trained again.
#   PHASE=1 SECONDS_OF_PHASE=360 benchmarks/device/train_lgm_mini.sh   pictures of 128 px, from random weights
#   PHASE=2 SECONDS_OF_PHASE=800 benchmarks/device/train_lgm_mini.sh   256 px, from the averaged weights of phase 1
# Further arguments are options of `maquette train`. Variables:
#   SECONDS_OF_PHASE  training time of the phase, all its calls together: the cosine ends there
#   STEPS             an upper bound of the steps; the warm-up counts in these
#   GPUS, BATCH       processes, and objects of each per step
#   LIMIT             seconds after which this call has stopped training (calls end at 600)
#   INIT              weights for phase 2, instead of phase 1 on the same machine: a new machine has none, give it
#                     the lgm-mini.safetensors that phase 1 left in $OUT
#   EVALUATE          1: evaluate at the end of this call
set -euo pipefail
: "${OUT:?folder for results}" "${PHASE:=1}" "${GPUS:=4}" "${LIMIT:=560}" "${WORK:=/tmp/maquette}" "${EVALUATE:=0}"
case "$PHASE" in
  1) : "${SECONDS_OF_PHASE:=360}" "${STEPS:=8000}" "${BATCH:=32}"; options=(--input-size 128) ;;
  2) : "${SECONDS_OF_PHASE:=800}" "${STEPS:=12000}" "${BATCH:=8}"
     init=${INIT:-$(ls -d "$WORK"/phase1/checkpoints/step-* 2>/dev/null | tail -n 1)}
     options=(--init-from "${init:?no checkpoint of phase 1 on this machine: set INIT}" --lr 7e-4 --warmup-steps 200) ;;
  *) echo "PHASE must be 1 or 2, got $PHASE" >&2; exit 2 ;;
esac
export PYTHONPATH="src:/tmp/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8
began=$(date +%s)
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
workers=$(($(nproc) * 3 / 4))
render() { python3 -m maquette.cli data render .carry/assets.tar.xz -o "$1" --workers "$workers" "${@:2}" 2>&1 | tail -c 300; }
[ -f "$WORK/train.done" ] || { render "$WORK/train" --split train --plan training; touch "$WORK/train.done"; cp "$WORK/train/contact.png" "$WORK/train/failures.json" "$OUT/" || true; }
[ "$EVALUATE" != 1 ] || [ -f "$WORK/test.done" ] || { render "$WORK/test" --split test --no-geometry; touch "$WORK/test.done"; }
echo "data ready after $(($(date +%s) - began)) s"
left=$((LIMIT - ($(date +%s) - began) - 20 - 60 * EVALUATE))
run="$WORK/phase$PHASE"
before=$(tail -n 1 "$run/log.jsonl" 2>/dev/null || true)
torchrun --standalone --nproc_per_node="$GPUS" -m maquette.cli train lgm-mini --data "$WORK/train" -o "$run" \
  --steps "$STEPS" --batch-size "$BATCH" --schedule-seconds "$SECONDS_OF_PHASE" --max-seconds "$left" \
  --save-every 100000 --picture-every 2000 --log-every 50 "${options[@]}" --export "$OUT/lgm-mini.safetensors" "$@" \
  > "$OUT/train.txt" 2>&1 &
training=$!
# The rate, soon after the start: the machine's time is too dear to learn it at the end.
for _ in $(seq 30); do
  sleep 5
  if ! kill -0 "$training" 2>/dev/null; then break; fi
  now=$(tail -n 1 "$run/log.jsonl" 2>/dev/null || true)
  if [ "$now" != "$before" ]; then echo "$now"; break; fi
done
wait "$training" || { tail -n 60 "$OUT/train.txt"; exit 1; }
tail -n 40 "$OUT/train.txt"
tail -n 1 "$run/log.jsonl"
cp "$run/log.jsonl" "$OUT/log-phase$PHASE.jsonl"
ls -t "$run"/pictures/*.png 2>/dev/null | head -n 1 | xargs -r -I{} cp {} "$OUT/predictions.png" || true
if [ "$EVALUATE" = 1 ]; then
  python3 -m maquette.cli evaluate --model lgm-mini --weights "$OUT/lgm-mini.safetensors" --data "$WORK/test" --split test \
    -o "$WORK/evaluation" 2>&1 | tail -n 30
  cp "$WORK/evaluation/report.json" "$OUT/report.json"
  ls "$WORK"/evaluation/*.png | head -n 1 | xargs -r -I{} cp {} "$OUT/sheet.png"
fi
echo "call took $(($(date +%s) - began)) s"
