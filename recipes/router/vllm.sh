#!/usr/bin/env bash
# Runs a vLLM server that generates, one of the same model that pools, and the router in front of them, until one of
# them ends or Ctrl-C. Needs a GPU, `vllm` and `entropy-rft`; these may be in separate environments:
#
#   MODEL=Qwen/Qwen3-4B PROBE=probe recipes/router/vllm.sh
#   MODEL=Qwen/Qwen3-4B VLLM=/opt/vllm/bin/vllm GENERATE_GPUS=0,1 GENERATE_ARGS='--tensor-parallel-size 2' \
#       POOL_GPUS=2 POOL_MEMORY=0.9 recipes/router/vllm.sh --log_requests true
#
# Arguments go to `entropy-rft serve`. PROBE is made by `entropy-rft probe collect` and `probe train` from the same model
# (docs/difficulty.md). It reads the states of the last layer: train it with the same --dtype as that server.
# By default both servers share one GPU. The share of its memory that each may take is set below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MODEL=${MODEL:?name the model, such as MODEL=Qwen/Qwen3-4B}
PROBE=${PROBE:-probe}
CONFIG=${CONFIG:-$here/router.yaml}
VLLM=${VLLM:-vllm}
ROUTER=${ROUTER:-entropy-rft}
GENERATE_PORT=${GENERATE_PORT:-8001}
POOL_PORT=${POOL_PORT:-8002}
GENERATE_GPUS=${GENERATE_GPUS:-0}
POOL_GPUS=${POOL_GPUS:-0}
GENERATE_MEMORY=${GENERATE_MEMORY:-0.65}
POOL_MEMORY=${POOL_MEMORY:-0.25}
DTYPE=${DTYPE:-auto}
MAX_LEN=${MAX_LEN:-16384}
START_S=${START_S:-900} # downloading a model takes minutes

say() { printf '== %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

[ -f "$PROBE/probe.json" ] || fail "PROBE=$PROBE holds no probe.json: entropy-rft probe train makes one"
# This check takes a second. Without it a mistake shows only after the servers have started, which takes minutes.
ENTROPY_RFT_ROUTER_PROBE=$PROBE "$ROUTER" serve --config "$CONFIG" --check "$@" >&2 || exit 2

children=()
finish() {
    trap - EXIT
    trap '' INT TERM
    # Stop the router first: it completes the started requests, and needs the servers for that.
    if [ "${#children[@]}" -gt 2 ]; then
        kill -TERM "${children[2]}" 2>/dev/null || true
        wait "${children[2]}" 2>/dev/null || true
    fi
    kill -TERM "${children[@]}" 2>/dev/null || true
    wait || true
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# await NAME PID PORT: wait until the server's /health answers, or fail when it ends.
await() {
    local until=$((SECONDS + START_S))
    until (exec 3<>"/dev/tcp/127.0.0.1/$3" && printf 'GET /health HTTP/1.0\r\n\r\n' >&3 && read -r line <&3 &&
        [[ $line == *" 200"* ]]) 2>/dev/null; do
        kill -0 "$2" 2>/dev/null || fail "the $1 server ended before it was ready"
        [ "$SECONDS" -lt "$until" ] || fail "the $1 server is not ready after $START_S s (set START_S to wait longer)"
        sleep 1
    done
    say "the $1 server is ready on port $3"
}

say "starting two servers of $MODEL"
# One after the other: each measures the free memory of a shared GPU when it starts.
# shellcheck disable=SC2086 # the arguments are meant to be several words
CUDA_VISIBLE_DEVICES=$GENERATE_GPUS "$VLLM" serve "$MODEL" --host 127.0.0.1 --port "$GENERATE_PORT" --dtype "$DTYPE" \
    --max-model-len "$MAX_LEN" --max-num-seqs 256 --gpu-memory-utilization "$GENERATE_MEMORY" ${GENERATE_ARGS:-} &
children+=($!)
await generation "${children[0]}" "$GENERATE_PORT"
# shellcheck disable=SC2086
CUDA_VISIBLE_DEVICES=$POOL_GPUS "$VLLM" serve "$MODEL" --runner pooling --host 127.0.0.1 --port "$POOL_PORT" \
    --dtype "$DTYPE" --max-model-len "$MAX_LEN" --gpu-memory-utilization "$POOL_MEMORY" ${POOL_ARGS:-} &
children+=($!)
await pooling "${children[1]}" "$POOL_PORT"

ENTROPY_RFT_ROUTER_PROBE=$PROBE \
    ENTROPY_RFT_ROUTER_BACKENDS="[{\"url\": \"http://127.0.0.1:$GENERATE_PORT\", \"name\": \"vllm-0\", \"max_outstanding\": 256}]" \
    ENTROPY_RFT_ROUTER_FEATURES__URL="http://127.0.0.1:$POOL_PORT" \
    "$ROUTER" serve --config "$CONFIG" "$@" &
children+=($!)

# `wait -n` does not say which process ended; the router's exit code becomes the script's.
code=0
wait -n "${children[@]}" || code=$?
kill -0 "${children[2]}" 2>/dev/null && fail "a vLLM server ended; stopping the router"
exit "$code"
