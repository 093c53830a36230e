#!/usr/bin/env bash
# Trains mvdream-mini and gamba-mini side by side on a machine with several GPUs that is lent in calls of ten minutes: the
# former goes on from its weights, the latter too or from random ones. Carry .whl and a folder with assets.tar.xz.
#   STAGE=train benchmarks/device/train_minis.sh    renders and starts both; options for the denoiser as arguments
#   STAGE=wait benchmarks/device/train_minis.sh     waits for them; every call brings home weights, a picture and logs
# Variables:
#   MVDREAM_SECONDS        training time of the denoiser
#   MVDREAM_GPUS, GAMBA_GPUS    numbers of the GPUs of each, with commas
#   WEIGHTS                what the denoiser goes on from
#   GAMBA_SECONDS          training time of gamba-mini's two phases
#   GAMBA_INIT             what gamba-mini goes on from; without it, it starts anew
#   ASSETS, VARIANTS, RESHAPE, ALIGNED, LIMIT    as in train_mvdream_mini.sh; gamba-mini has three variants
set -euo pipefail
: "${OUT:?folder for results}" "${STAGE:?train or wait}" "${LIMIT:=570}" "${ASSETS:=.carry/assets.tar.xz}"
: "${MVDREAM_SECONDS:=1150}" "${GAMBA_SECONDS:=400 700}" "${WEIGHTS:=src/maquette/weights/mvdream-mini.safetensors}"
: "${MVDREAM_GPUS:=0,1,2}" "${GAMBA_GPUS:=3}" "${GAMBA_INIT:=}" "${RESHAPE:=0.5}" "${ALIGNED:=0.7}"
read -r first second <<< "$GAMBA_SECONDS"
export STAGE LIMIT ASSETS RESHAPE ALIGNED
count() { tr ',' '\n' <<< "$1" | wc -l; }
if [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
mkdir -p /tmp/home/mvdream /tmp/home/gamba
(
  export OUT=/tmp/home/mvdream WORK=/tmp/maquette/mvdream CUDA_VISIBLE_DEVICES="$MVDREAM_GPUS" LAYOUT=
  GPUS=$(count "$MVDREAM_GPUS"); export GPUS
  export AUTOENCODER="$WEIGHTS" INIT="$WEIGHTS" SECONDS_2="$MVDREAM_SECONDS"
  bash benchmarks/device/train_mvdream_mini.sh "$@" > /tmp/home/mvdream.txt 2>&1
) &
(
  export OUT=/tmp/home/gamba WORK=/tmp/maquette/gamba CUDA_VISIBLE_DEVICES="$GAMBA_GPUS" INIT="$GAMBA_INIT"
  GPUS=$(count "$GAMBA_GPUS"); export GPUS RENDER="--no-geometry --reshape-probability $RESHAPE --aligned-probability $ALIGNED"
  export SECONDS_1="$first" SECONDS_2="$second" BATCH_1=96 BATCH_2=40
  bash benchmarks/device/train_gamba_mini.sh > /tmp/home/gamba.txt 2>&1
) &
wait
tail -n 14 /tmp/home/mvdream.txt /tmp/home/gamba.txt
cp /tmp/home/mvdream/*.part-* /tmp/home/gamba/*.safetensors "$OUT" 2>/dev/null || true
cp /tmp/home/gamba/predictions.png "$OUT" 2>/dev/null || true
tar czf "$OUT/logs.tgz" -C /tmp/home --exclude='*.safetensors' --exclude='*.part-*' --exclude=predictions.png .
