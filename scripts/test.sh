#!/usr/bin/env bash
# Set up an environment, then check everything: format and lint (ruff), types (mypy), documentation (mkdocs), tests (pytest,
# one worker a core), and with vLLM (test_vllm.sh, an environment of its own, installed while the others run). `--soak`
# adds the tests that repeat others at random or in another way. Other arguments go to pytest, such as `-m "not e2e"`,
# `-n 0` or a file; then vLLM's tests are left out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment dev
cd "$root"

everything=true
for word in "$@"; do
    [ "$word" = --soak ] || everything=false
done
if "$everything" && [ "$(uname -s)" = Linux ]; then
    vllm_log=$(mktemp)
    (
        unset VIRTUAL_ENV
        ensure_vllm_environment
    ) >"$vllm_log" 2>&1 &
    vllm_installation=$!
    trap 'kill "$vllm_installation" 2>/dev/null || true' EXIT
fi

say "ruff"
"$python" -m ruff format --check .
"$python" -m ruff check .
say "mypy"
"$python" -m mypy
say "mkdocs"
# (--quiet would also hide its warnings from --strict.)
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict
say "pytest $*"
"$python" -m pytest -n auto --maxprocesses 4 --dist loadscope --durations 20 "$@"
if "$everything"; then
    if [ -n "${vllm_installation:-}" ]; then
        wait "$vllm_installation" || { cat "$vllm_log" >&2; exit 1; }
        rm -f "$vllm_log"
        trap - EXIT
    fi
    exec "$root/scripts/test_vllm.sh"
fi
