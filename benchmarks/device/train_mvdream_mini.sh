#!/usr/bin/env bash
# The training of mvdream-mini, and of the judge of its views, on a GPU machine that is lent in calls of ten minutes. Carry
# .whl (tyro and diffusers) and .carry (assets.tar.xz). A first call renders the sides of the training objects and may
# compare options; a second starts the training, which outlives its call; further calls wait for it and bring home
# weights, logs and pictures in $OUT.
#   STAGE=compare benchmarks/device/train_mvdream_mini.sh "--lr 1e-3" "--lr 2e-3" ...   trains an auto-encoder on all GPUs
#                       for AE_SECONDS, then the denoiser on one GPU each for COMPARE_SECONDS, measured on the validation
#                       split
#   STAGE=train benchmarks/device/train_mvdream_mini.sh     both stages; options for the denoiser as arguments
#   STAGE=wait benchmarks/device/train_mvdream_mini.sh
# Variables:
#   AE_SECONDS, SECONDS_2  training time of the two stages: each one's cosine ends there
#   AUTOENCODER, INIT      weights to take instead of the first stage, and to continue the second from
#   DECODER_SECONDS        with AUTOENCODER: the last GPU trains on its decoder for so long (0: not), the others the
#                          denoiser; decoder.safetensors then holds the auto-encoder
#   SAVE_EVERY             steps of the denoiser between its exports
#   COMPARE_SECONDS        training time of each comparison
#   GPUS, BATCH_1, BATCH_2 processes, and objects of each per step
#   VARIANTS               looks per object that are rendered
#   RESHAPE                share of those beyond the first that show it turned and reshaped, 0 to 1
#   ALIGNED                share of all looks that have the size and the cameras of the evaluation protocol, 0 to 1
#   LAYOUT                 options for the denoiser's speed
#   LIMIT                  seconds after which this call has ended (calls end at 600)
set -euo pipefail
: "${OUT:?folder for results}" "${STAGE:?compare, train or wait}" "${ASSETS:=.carry/assets.tar.xz}" "${GPUS:=4}" "${LIMIT:=585}" "${WORK:=/tmp/maquette}"
: "${AE_SECONDS:=240}" "${SECONDS_2:=600}" "${COMPARE_SECONDS:=90}" "${BATCH_1:=6}" "${BATCH_2:=128}" "${SOURCE:=src}"
: "${AUTOENCODER:=}" "${INIT:=}" "${VARIANTS:=5}" "${RESHAPE:=0.5}" "${ALIGNED:=0.7}" "${LAYOUT=--channels-last}" "${DECODER_SECONDS:=0}" "${SAVE_EVERY:=1000}"
export PYTHONPATH="$SOURCE:/tmp/site" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8 AE_SECONDS SECONDS_2 BATCH_1 BATCH_2 GPUS WORK
export AUTOENCODER INIT LAYOUT DECODER_SECONDS SAVE_EVERY HF_HUB_OFFLINE=1
began=$(date +%s)
mkdir -p "$WORK"
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
render() { # split plan
  python3 -m maquette.cli data render "$ASSETS" -o "$WORK/$1-$2" --split "$1" --plan "$2" --no-geometry \
    --workers $(($(nproc) * 3 / 4)) "${@:3}" 2>&1 | tail -c 200
}
if [ ! -f "$WORK/data.done" ]; then
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  render train sides --variants "$VARIANTS" --reshape-probability "$RESHAPE" --aligned-probability "$ALIGNED"
  touch "$WORK/data.done"
  cp "$WORK/train-sides/contact.png" "$OUT/"
  echo "data ready after $(($(date +%s) - began)) s"
fi
cat > "$WORK/autoencoder.sh" <<'FIRST'
set -e
if [ -n "$AUTOENCODER" ]; then cp "$AUTOENCODER" "$WORK/autoencoder.safetensors"; exit 0; fi
torchrun --standalone --nproc_per_node="$GPUS" -m maquette.cli train mvdream-mini-autoencoder --data "$WORK/train-sides" \
  -o "$WORK/phase1" --batch-size "$BATCH_1" --steps 20000 --schedule-seconds "$AE_SECONDS" --channels-last \
  --export "$WORK/autoencoder.safetensors" --save-every 100000 --picture-every 500 --log-every 50
FIRST
cat > "$WORK/train.sh" <<'PHASES'
set -e
bash "$WORK/autoencoder.sh"
if [ -z "$AUTOENCODER" ]; then
  python3 benchmarks/train_classifier.py --data "$WORK/train-sides" -o "$WORK/classifier.safetensors" > "$WORK/classifier.txt" 2>&1 &
fi
if [ "$DECODER_SECONDS" -gt 0 ]; then
  CUDA_VISIBLE_DEVICES=$(echo "${CUDA_VISIBLE_DEVICES:-0,1,2,3,4,5,6,7}" | cut -d, -f"$GPUS") \
    python3 -m maquette.cli train mvdream-mini-autoencoder --data "$WORK/train-sides" --autoencoder "$AUTOENCODER" \
    -o "$WORK/phase1" --batch-size "$BATCH_1" --steps 20000 --schedule-seconds "$DECODER_SECONDS" --channels-last \
    --export "$WORK/decoder.safetensors" --save-every 500 --picture-every 500 --log-every 50 > "$WORK/decoder.txt" 2>&1 &
  GPUS=$((GPUS - 1))
fi
torchrun --standalone --nproc_per_node="$GPUS" -m maquette.cli train mvdream-mini --data "$WORK/train-sides" \
  -o "$WORK/phase2" --autoencoder "$WORK/autoencoder.safetensors" --batch-size "$BATCH_2" --steps 20000 \
  --schedule-seconds "$SECONDS_2" ${INIT:+--init-from "$INIT"} $LAYOUT \
  --export "$WORK/mvdream-mini.safetensors" --save-every "$SAVE_EVERY" --picture-every 0 --log-every 100 "$@"
wait
PHASES
bring_home() { # logs, a picture and the newest weights; eight files come home at most, of 16 MiB
  tar czf "$OUT/logs.tgz" -C "$WORK" train.txt $(cd "$WORK" && ls classifier.txt decoder.txt phase*/log.jsonl 2>/dev/null) || true
  ls -t "$WORK"/phase1/pictures/*.png 2>/dev/null | head -n 1 | xargs -r -I{} cp {} "$OUT/autoencoder.png" || true
  for file in mvdream-mini autoencoder decoder classifier; do
    if [ "$WORK/$file.safetensors" -nt "$OUT/$file.part-aa" ]; then
      split -b 14M "$WORK/$file.safetensors" "$OUT/$file.part-"
    fi
  done
}
case "$STAGE" in
  compare)
    [ -d "$WORK/val-standard" ] || render val standard
    bash "$WORK/autoencoder.sh" > "$OUT/autoencoder.txt" 2>&1
    tail -n 2 "$OUT/autoencoder.txt"
    cp "$WORK/autoencoder.safetensors" "$OUT/"
    number=0
    for options in "$@"; do
      export CUDA_VISIBLE_DEVICES=$number weights="$WORK/compare$number.safetensors"
      # shellcheck disable=SC2086
      { python3 -m maquette.cli train mvdream-mini --data "$WORK/train-sides" -o "$WORK/compare$number" \
        --autoencoder "$WORK/autoencoder.safetensors" --batch-size "$BATCH_2" --steps 3000 --warmup-steps 100 \
        --schedule-seconds "$COMPARE_SECONDS" --channels-last --export "$weights" --log-every 50 --picture-every 0 \
        --save-every 100000 $options \
        && python3 -m maquette.cli evaluate-views --model mvdream-mini --weights "$weights" \
          --data "$WORK/val-standard" --split val --steps 10 --guidance 1.5 --limit 64 -o "$WORK/compare$number/val"; } \
        > "$OUT/compare$number.txt" 2>&1 &
      number=$((number + 1))
    done
    wait
    for file in "$OUT"/compare*.txt; do echo "$file"; tail -n 14 "$file"; done
    ;;
  train) setsid bash "$WORK/train.sh" "$@" > "$WORK/train.txt" 2>&1 < /dev/null & echo $! > "$WORK/pid" ;;&
  train | wait)
    while kill -0 "$(cat "$WORK/pid")" 2>/dev/null && [ $(($(date +%s) - began)) -lt "$LIMIT" ]; do
      sleep 5
      bring_home # a machine that is lost then costs its last seconds only
    done
    tail -n 12 "$WORK/train.txt"
    bring_home
    ;;
esac
echo "call took $(($(date +%s) - began)) s"
