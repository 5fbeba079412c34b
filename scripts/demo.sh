#!/usr/bin/env bash
# Set up an environment, then run the main job on the embedded model: GRPO, the target rule, and that rule with PEAR, trained,
# evaluated on held-out questions and compared in a table and an HTML report. Arguments go to `entropy-rft demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment report
say "entropy-rft demo $*"
exec "$python" -m entropy_rft demo "$@"
