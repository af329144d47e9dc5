#!/usr/bin/env bash
# What a GPU is to show, on one card of 80 GB or more in about ten minutes:
# the tests that need one, speed and MFU beside a padded trainer, and the memory of the large models.
#
#   WORK=work TOKENIZERS=tokenizers OUTPUT=benchmarks/results bash benchmarks/gpu.sh
#
# PYTHON is an interpreter with the package's dependencies, pytest, pytest-timeout and
# sentence-transformers. That is the padded trainer: at its best it groups by length and computes the
# last token's logits alone. With ms-swift and flash-attn installed too, its padding-free path is run.
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
  step "$name" "$PYTHON" benchmarks/speed.py --here --alone --device "$DEVICE" --work "$WORK" \
    --tokenizers "$TOKENIZERS" --output "$OUTPUT/gpu-$name.json" "$@" "${MORE[@]}"
}

steps() {
  local name=$1
  shift
  step "steps $name" "$PYTHON" benchmarks/steps.py "$@" --device "$DEVICE" \
    --output "$OUTPUT/gpu-steps-$name.json" "${MORE[@]}"
}

peers=(rankwright rankwright:compiled sentence-transformers:documented sentence-transformers:best)
step "tests" "$PYTHON" -m pytest -q -m gpu tests/models tests/test_guards.py
steps small qwen3-0.6b modernbert-base --slice-tokens 8192 16384 --profile 30
steps large qwen3-8b qwen3-4b --batch-tokens 16384 --slice-tokens 4096
# what a padded trainer of the same model holds in 80 GB; it accumulates gradients over the rest
speed qwen3-0.6b --cases qwen3-0.6b:listwise --systems "${peers[@]}" \
  --groups-per-step 16 --groups-at-once 4 --groups-per-round 64 --rounds 3
speed modernbert-base --cases modernbert-base:listwise --systems "${peers[@]}" \
  --groups-per-step 32 --groups-at-once 16 --groups-per-round 256 --rounds 3
speed rank --cases qwen3-0.6b:rank modernbert-base:rank --groups-per-round 100 \
  --systems rankwright sentence-transformers:documented sentence-transformers:best
if "$PYTHON" -c "import flash_attn, swift" 2>/dev/null; then
  speed ms-swift --cases qwen3-0.6b:listwise --systems rankwright ms-swift:best \
    --attention flash_attention_2 --groups-per-step 16 --groups-at-once 4 --groups-per-round 64 \
    --rounds 3
else
  echo "--- ms-swift: not run, since ms-swift or flash-attn is not installed"
fi

for command in "${failed[@]}"; do
  echo "failed: $command"
done
[ ${#failed[@]} -eq 0 ]
