#!/usr/bin/env bash
# Set up an environment, then run the main job on the embedded model: GRPO, the target rule, and that rule with PEAR, trained,
# evaluated on held-out questions and compared in a table and an HTML report. Arguments go to `entropy-rft demo`; what
# `--model smollm2` needs is then installed and fetched too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
case " $* " in
    *smollm2*)
        ensure_environment report,smollm2,reasoning-gym
        "$python" -m entropy_rft fetch smollm2
        ;;
    *) ensure_environment report ;;
esac
say "entropy-rft demo $*"
exec "$python" -m entropy_rft demo "$@"
