#!/usr/bin/env bash
# Gets ready what tests want beyond Python packages, each where it may:
#   - ip, tc and nft for the tests in network namespaces, and miniupnpd for their routers (installed with apt-get as root),
#   - bubblewrap and libseccomp for the tests of the sandbox (installed with apt-get as root),
#   - the WebAssembly Python, compiled for this machine (.test-engines),
#   - dockerd, podman and busybox for the tests of containers (installed likewise; no daemon is started here),
#   - further Python versions with the product installed, for jobs whose peers run different ones (.venv-3.12 …).
# Whatever cannot be had is named; the tests that need it skip with the same reason. Writes .test-env, which tests/conftest.py reads.
#
#   tests/setup.sh                 get everything ready
#   tests/setup.sh --find-python   print the interpreter that .venv should be made with, and nothing else
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Whether $1 is a Python of minor version $2 (or of any from 3.11 on) that can make virtual environments. A shim may exist and still not work.
usable() {
    "$1" - "${2:-}" >/dev/null 2>&1 <<'PYTHON'
import ensurepip, sys, venv
wanted = sys.argv[1] if len(sys.argv) > 1 else ""
version = "%d.%d" % sys.version_info[:2]
sys.exit(0 if (version == wanted if wanted else sys.version_info >= (3, 11)) else 1)
PYTHON
}

# Prints the first usable interpreter of minor version $1. HOME may be another than the user's own, as in a test of a fresh machine.
find_minor() {
    local candidate own
    own=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f6) || own=""
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python "$own"/.pyenv/versions/"$1".*/bin/python "/opt/python$1/bin/python" "/usr/local/bin/python$1"; do
        if command -v "$candidate" >/dev/null 2>&1 && usable "$candidate" "$1"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

if [ "${1:-}" = --find-python ]; then
    for candidate in python3 python3.11 python3.12 python3.13 python; do
        if command -v "$candidate" >/dev/null 2>&1 && usable "$candidate"; then
            command -v "$candidate"
            exit 0
        fi
    done
    find_minor 3.11 || find_minor 3.12 || find_minor 3.13 || true
    exit 0
fi

[ -x .venv/bin/python ] || { echo "tests/setup.sh: no .venv here; run make venv first" >&2; exit 1; }

# --- system tools -----------------------------------------------------------------------------------------------------
missing=()
command -v ip >/dev/null && command -v tc >/dev/null || missing+=(iproute2)
command -v nft >/dev/null || missing+=(nftables)
# The daemon alone: the package miniupnpd would start it on this machine, too.
command -v miniupnpd >/dev/null || missing+=(miniupnpd-nftables)
command -v bwrap >/dev/null || missing+=(bubblewrap)
ldconfig -p 2>/dev/null | grep -q libseccomp.so.2 || missing+=(libseccomp2)
# The engines of the tests' own containers, which tests/support/dockerd.py starts, and what its images are made of.
command -v dockerd >/dev/null || missing+=(docker.io)
command -v podman >/dev/null || missing+=(podman)
command -v busybox >/dev/null || missing+=(busybox-static)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]} for the tests in namespaces and containers"
        export DEBIAN_FRONTEND=noninteractive
        # No package may start a daemon on this machine: what tests need of one they start themselves.
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
            trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        fi
        { apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
            { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; }; } >/dev/null ||
            echo "could not install ${missing[*]}: the tests in namespaces and containers will skip" >&2
    else
        echo "${missing[*]} missing, and this is not root on a machine with apt-get: the tests in namespaces and containers will skip" >&2
    fi
fi

# --- further Python versions ------------------------------------------------------------------------------------------
pythons=""
own=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for minor in 3.11 3.12 3.13; do
    [ "$minor" != "$own" ] || continue
    folder=".venv-$minor"
    if ! interpreter=$(find_minor "$minor"); then
        echo "Python $minor not found: the tests with peers of that version will skip" >&2
        continue
    fi
    if [ ! -f "$folder/.installed" ] || [ pyproject.toml -nt "$folder/.installed" ]; then
        echo "installing the product for Python $minor in $folder"
        if ! { { [ -x "$folder/bin/python" ] || "$interpreter" -m venv "$folder"; } &&
            "$folder/bin/python" -m pip install --quiet --editable .; }; then
            echo "could not install the product for Python $minor: the tests with peers of that version will skip" >&2
            continue
        fi
        touch "$folder/.installed"
    fi
    pythons="${pythons:+$pythons:}$PWD/$folder/bin/python"
done

# --- the WebAssembly Python -------------------------------------------------------------------------------------------
# A minute, once for each version of what goes into it; the tests make it themselves where this could not.
.venv/bin/python -m p2pcompute.execution.engines.wasm_python_build "$PWD/.test-engines" >/dev/null ||
    echo "the WebAssembly Python could not be made: the tests that run it will skip" >&2

printf '# Written by tests/setup.sh: further interpreters that have the product, separated by colons.\nP2PCOMPUTE_TEST_PYTHONS=%s\n' "$pythons" >.test-env
