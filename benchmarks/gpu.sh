#!/usr/bin/env bash
# What a GPU is to show, on one card of 80 GB or more in about ten minutes:
# the tests that need one, speed and MFU beside a padded trainer, and the memory of the large models.
#
#   WORK=work TOKENIZERS=tokenizers OUTPUT=benchmarks/results bash benchmarks/gpu.sh
#
# PYTHON is an interpreter with the package's dependencies, pytest and sentence-transformers, which
# is the padded trainer: at its best it groups by length and computes the last token's logits alone.
# A step that fails is reported at the end, and the others go on.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} WORK=${WORK:-work} TOKENIZERS=${TOKENIZERS:-tokenizers}
OUTPUT=${OUTPUT:-$WORK} DEVICE=${DEVICE:-cuda}
# further arguments for speed.py, such as --smoke --device cpu to try the script itself
read -r -a MORE <<<"${MORE:-}"
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUTPUT"
failed=()

step() {
  echo "--- $1 ($(date +%T))"
  shift
  "$@" || failed+=("$*")
}

speed() {
  local name=$1
  shift
  step "$name" "$PYTHON" benchmarks/speed.py --here --device "$DEVICE" --work "$WORK" \
    --tokenizers "$TOKENIZERS" --output "$OUTPUT/gpu-$name.json" "$@" "${MORE[@]}"
}

peers=(rankwright sentence-transformers:documented sentence-transformers:best)
step "tests" "$PYTHON" -m pytest -q -m gpu tests/models
speed qwen3-0.6b --cases qwen3-0.6b:listwise --systems "${peers[@]}" \
  --groups-per-step 32 --groups-per-round 256
speed modernbert-base --cases modernbert-base:listwise --systems "${peers[@]}" \
  --groups-per-step 64 --groups-per-round 512
speed rank --cases qwen3-0.6b:rank modernbert-base:rank --systems "${peers[@]}" \
  --groups-per-round 100
speed qwen3-8b-lora --cases qwen3-8b:listwise --systems rankwright --lora 8 --no-check \
  --groups-per-step 4 --groups-per-round 12 --rounds 2
speed qwen3-4b --cases qwen3-4b:listwise --systems rankwright --no-check \
  --groups-per-step 2 --groups-per-round 6 --rounds 2

for command in "${failed[@]}"; do
  echo "failed: $command"
done
[ ${#failed[@]} -eq 0 ]
