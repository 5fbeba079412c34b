#!/usr/bin/env bash
# One vLLM server that generates, evaluates the probe, and gives each question the strategy of its difficulty: no router
# beside it, no second engine. Needs a GPU, and `vllm` with this package in its environment (pip install 'entropy_rft[router]'):
#
#   MODEL=Qwen/Qwen3-4B PROBE=probe recipes/router/one_engine/serve.sh
#   MODEL=Qwen/Qwen3-4B recipes/router/one_engine/serve.sh --port 9000 --api-key secret --tensor-parallel-size 2
#
# Arguments go to `vllm serve`. PROBE is made by `entropy-rft probe collect` and `probe train` from the same model, its last
# layer (docs/difficulty.md). Without this script it is
#
#   ENTROPY_RFT_PROBE=probe vllm serve MODEL --middleware entropy_rft.router.middleware.RouterMiddleware
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MODEL=${MODEL:?name the model, such as MODEL=Qwen/Qwen3-4B}
PROBE=${PROBE:-probe}
CONFIG=${CONFIG:-$here/middleware.yaml}
VLLM=${VLLM:-vllm}

fail() { printf '== %s\n' "$*" >&2; exit 1; }

# vLLM would find these mistakes too, but only after it has loaded the model.
[ -f "$PROBE/probe.json" ] || fail "PROBE=$PROBE holds no probe.json: entropy-rft probe train makes one"
[ -f "$CONFIG" ] || fail "CONFIG=$CONFIG is no file"

ENTROPY_RFT_PROBE=$PROBE ENTROPY_RFT_CONFIG=$CONFIG exec "$VLLM" serve "$MODEL" \
    --middleware entropy_rft.router.middleware.RouterMiddleware "$@"
