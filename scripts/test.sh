#!/usr/bin/env bash
# Set up an environment, then check everything: format and lint (ruff), types (mypy), tests (pytest). Arguments go to
# pytest, such as `-m "not e2e"` or a file.
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
exec "$python" -m pytest "$@"
