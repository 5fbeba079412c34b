#!/usr/bin/env bash
# Set up an environment, then check everything: format and lint (ruff), types (mypy), documentation (mkdocs), tests (pytest,
# one worker a core), and with vLLM (test_vllm.sh, an environment of its own, installed while the others run). `--soak`
# adds the tests that repeat others at random or in another way. Other arguments go to pytest, such as `-m "not e2e"`,
# `-n 0` or a file; then vLLM's tests are left out. What uses one core runs beside other work: see `beside` and `joined`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment dev
cd "$root"

everything=true
for word in "$@"; do
    [ "$word" = --soak ] || everything=false
done
logs=$(mktemp -d)
pid_vllm='' pid_mkdocs='' pid_operator=''
# The operator's build is left to come to its end: killed, it would leave a lock that every later launch waits for.
trap 'kill $pid_vllm $pid_mkdocs 2>/dev/null || true; rm -rf "$logs"' EXIT

# beside NAME COMMAND...: start it, its output in a file. joined NAME: wait for it; if it fails, say how, and fail too.
beside() {
    local name=$1
    shift
    "$@" >"$logs/$name" 2>&1 &
    eval "pid_$name=$!"
}

joined() {
    local name=$1 pid=pid_$1
    if ! wait "${!pid}"; then
        say "$name failed"
        cat "$logs/$name" >&2
        return 1
    fi
}

install_vllm() {
    unset VIRTUAL_ENV
    ensure_vllm_environment
}

check_documentation() {
    # (--quiet would also hide its warnings from --strict.)
    NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict
}

# DeepSpeed compiles a C++ operator for the CPU at the first launch, more than a minute on one core. A launch that comes
# before the end waits for it.
build_operator() {
    "$python" -c '
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import build_shm_op
if get_accelerator().device_name() == "cpu":
    build_shm_op()
'
}

if "$everything" && [ "$(uname -s)" = Linux ]; then
    beside vllm install_vllm
fi
say "ruff"
"$python" -m ruff format --check .
"$python" -m ruff check .
if "$everything"; then
    beside operator build_operator
fi
say "mypy and mkdocs"
beside mkdocs check_documentation
"$python" -m mypy
joined mkdocs
say "pytest $*"
"$python" -m pytest -n auto --maxprocesses 4 --dist loadscope --durations 20 "$@"
if "$everything"; then
    joined operator
    [ -z "$pid_vllm" ] || joined vllm
    "$root/scripts/test_vllm.sh"
fi
