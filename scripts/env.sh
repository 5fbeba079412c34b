# Sourced by the other scripts: `ensure_environment EXTRAS` leaves the interpreter to use in $python.
#
# The active virtual environment is used as it is; without one, .venv in the project's root is made. Nothing is
# installed again while pyproject.toml and the asked-for extras are what they were the last time.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "Python 3.10 to 3.13 is needed and none was found; name one with PYTHON=/path/to/python"
    return 1
}

ensure_environment() {
    local extras=$1 base environment stamp wanted
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        environment=$VIRTUAL_ENV
    else
        environment=$root/.venv
        if [ ! -x "$environment/bin/python" ]; then
            base=$(find_python) || return 1
            say "making $environment with $("$base" --version)"
            "$base" -m venv "$environment" || return 1
        fi
    fi
    python=$environment/bin/python
    export PATH=$environment/bin:$PATH

    stamp=$environment/.entropy_rft-$extras
    wanted=$(cksum <"$root/pyproject.toml")-$root
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "environment $environment is ready"
        return
    fi
    if ! "$python" -c 'import torch' 2>/dev/null; then
        # An open range takes the newest build with its gigabytes of CUDA, which a machine without a GPU never uses;
        # this version is the one whose CPU build the tests run on, where the package index has it.
        if [ -n "${ENTROPY_RFT_TORCH:-}" ]; then
            wanted_torch=$ENTROPY_RFT_TORCH
        elif command -v nvidia-smi >/dev/null 2>&1; then
            wanted_torch='torch>=2.6'
        else
            wanted_torch='torch==2.13.0'
        fi
        say "installing $wanted_torch into $environment"
        "$python" -m pip install --quiet --disable-pip-version-check "$wanted_torch" || return 1
    fi
    say "installing entropy_rft[$extras] into $environment"
    "$python" -m pip install --quiet --disable-pip-version-check --editable "$root[$extras]" || return 1
    printf '%s\n' "$wanted" >"$stamp"
}
