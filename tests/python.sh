#!/bin/bash
# Run `make test` on another Python: tests/python.sh 3.14
#
# It is looked for on PATH, then among pyenv's, then in Debian (tests/debian.sh). Where there
# is none, this says so and does nothing; with CI set it fails. Variables of the make that
# called this (ARGS, JOBS) reach the one that it calls.
set -eu
cd "$(dirname "$0")/.."

version=${1:?which Python? tests/python.sh 3.14}
[[ $version =~ ^3\.[0-9]+$ ]] || { echo "VERSION is like 3.14, got '$version'" >&2; exit 2; }

# Those that run and can make environments: a shim of pyenv's may do neither.
is_whole() {
    "$1" -c "import ensurepip, venv" 2>/dev/null </dev/null
}

candidates() {
    command -v "python$version" || true
    # Of several patch versions the newest; no free-threaded build ("3.14.0t").
    compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python$version" |
        grep -v 't/bin/' | sort -rV || true
}

readarray -t pythons < <(candidates)
for python in "${pythons[@]}"; do
    if is_whole "$python"; then
        echo "== Python $version: $python"
        exec make --no-print-directory test PYTHON="$python"
    fi
done

exec tests/debian.sh "$version"
