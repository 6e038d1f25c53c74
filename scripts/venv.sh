# SPDX-License-Identifier: MIT
# Sourced by demo and test, which set pipefail: .venv beside the sources, with lutra installed in it.
# Needs python3 and a C++ compiler; cmake and ninja come with pip.

die() {
    echo "error: $*" >&2
    exit 1
}

# apt-get where this user may use it; returns 1 where not.
apt_install() {
    command -v apt-get >/dev/null || return 1
    local sudo=""
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        sudo="sudo"
    fi
    $sudo apt-get -qq update >/dev/null 2>&1 || true
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$@" >/dev/null
}

# install_lutra EXTRAS [pip options]: EXTRAS is "" or "[test]".
install_lutra() {
    local extras=$1
    shift
    command -v python3 >/dev/null || die "python3 is missing; install it and run this again"
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        die "no C++ compiler; install one (Debian, Ubuntu, Raspberry Pi OS: sudo apt install g++) and run this again"
    if [ ! -x .venv/bin/pip ]; then
        echo "== .venv"
        rm -rf .venv
        python3 -m venv .venv >/dev/null 2>&1 || {
            apt_install python3-venv || die "python3 has no venv module; sudo apt install python3-venv, then run this again"
            rm -rf .venv
            python3 -m venv .venv
        }
    fi
    # That of Debian 12 and Ubuntu 22.04 knows no -C.
    .venv/bin/pip install --help | grep -- '-C,' >/dev/null || .venv/bin/pip install --quiet --upgrade pip ||
        die "pip in .venv is too old and cannot be upgraded; see the message above"
    echo "== installing (the first time compiles llama.cpp and Lutra's kernels: several minutes)"
    mkdir -p build
    # llama-cpp-python, which the tests compare with, uses the libraries built here: its own build is turned off.
    LUTRA_NATIVE=1 CMAKE_ARGS="-DLLAMA_BUILD=OFF ${CMAKE_ARGS:-}" .venv/bin/pip install -v --disable-pip-version-check \
        -C build-dir=build/native "$@" ".$extras" 2>&1 | tee build/install.log | show_compiler_steps || {
        tail -n 40 build/install.log >&2
        die "the installation failed; the whole log is build/install.log"
    }
}

# Ninja's "[done/total]" on one line that is overwritten; silent when nobody watches.
show_compiler_steps() {
    local line
    while IFS= read -r line; do
        [[ -t 1 && $line =~ \[[0-9]+/[0-9]+\] ]] && printf '\r   compiling %s ' "${BASH_REMATCH[0]}"
    done
    [ ! -t 1 ] || printf '\n'
}
