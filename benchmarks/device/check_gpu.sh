#!/usr/bin/env bash
# All tests that need a GPU, a minute of both trainings on a few objects, and the timings of scan, Gamba and generation, on a
# lent GPU machine. Carry .whl, .mamba (see bench_scan.sh) and .smoke (assets.tar.xz: a few dozen objects with index.csv).
#   PARTS="tests smoke scan generate" COMMIT=HASH benchmarks/device/check_gpu.sh     results in $OUT
set -uo pipefail
: "${OUT:?folder for results}" "${PARTS:=tests smoke scan generate}" "${COMMIT:=unknown}" "${WORK:=/tmp/check}"
export PYTHONPATH="src:/tmp/site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 ASSETS="${ASSETS:-.smoke/assets.tar.xz}"
began=$(date +%s)
say() { echo "== $* ($(($(date +%s) - began)) s)"; }
if [ -d .whl ] && [ ! -d /tmp/site ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target /tmp/site .whl/*.whl
fi
if [ -f .mamba/build.py ] && [ ! -f .mamba/build/selective_scan_cuda.so ]; then
  (MAX_JOBS=8 timeout 400 python3 .mamba/build.py > "$OUT/build.txt" 2>&1) &
fi
case " $PARTS " in *" tests "*)
  timeout 240 python3 -m pytest -q -x --maxfail=20 -m gpu -p no:cacheprovider tests --durations=8 > "$OUT/tests.txt" 2>&1
  say tests; grep -E "^(FAILED|ERROR)|passed|failed" "$OUT/tests.txt" | cut -c1-200 | tail -n 24
esac
case " $PARTS " in *" smoke "*)
  mkdir -p "$WORK/logs"
  OUT="$WORK/logs" WORK="$WORK/gamba" GPUS=1 STAGE=train SECONDS_1=12 SECONDS_2=12 LIMIT=110 \
    bash benchmarks/device/train_gamba_mini.sh 2>&1 | tail -n 8 | cut -c1-300
  cp "$WORK/gamba/gamba/train.txt" "$OUT/smoke-gamba.txt"; cp "$WORK/logs/log-phase2.jsonl" "$OUT/smoke-gamba.jsonl"
  say gamba
  OUT="$WORK/logs" WORK="$WORK/mvdream" GPUS=1 STAGE=train AE_SECONDS=12 SECONDS_2=15 VARIANTS=2 LIMIT=150 \
    bash benchmarks/device/train_mvdream_mini.sh 2>&1 | tail -n 14 | cut -c1-300
  cp "$WORK/mvdream/train.txt" "$OUT/smoke-mvdream.txt"; cp "$WORK/logs/log-phase2.jsonl" "$OUT/smoke-mvdream.jsonl"
  say mvdream
esac
wait
case " $PARTS " in *" generate "*) python3 -m maquette.cli bench generate -o "$OUT" --commit "$COMMIT"; say generate ;; esac
case " $PARTS " in *" scan "*) bash benchmarks/device/bench_scan.sh; say scan ;; esac
