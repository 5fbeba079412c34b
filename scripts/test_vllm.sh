#!/usr/bin/env bash
# The tests that need vLLM (tests/integration/test_vllm*.py), in an environment of their own (.venv-vllm) with vLLM's build
# for the CPU. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ "$(uname -s)" != Linux ]; then
    say "vLLM's build for the CPU is for Linux: its tests are left out"
    exit 0
fi
ensure_vllm_environment
cd "$root"
say "pytest -m vllm $*"
# By file: the others import what only the development environment has.
exec "$python" -m pytest -n auto --maxprocesses 2 --dist loadscope --durations 10 -m vllm tests/integration/test_vllm*.py "$@"
