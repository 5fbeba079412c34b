#!/usr/bin/env bash
# Set up an environment, then check everything: format and lint (ruff), types (mypy), tests (pytest), and with vLLM
# (test_vllm.sh, an environment of its own). Arguments go to pytest, such as `-m "not e2e"` or a file; then vLLM's tests
# are left out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment dev
cd "$root"
say "ruff"
"$python" -m ruff format --check .
"$python" -m ruff check .
say "mypy"
"$python" -m mypy
say "pytest $*"
"$python" -m pytest "$@"
if [ $# -eq 0 ]; then
    exec "$root/scripts/test_vllm.sh"
fi
