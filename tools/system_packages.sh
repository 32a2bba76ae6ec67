#!/bin/sh
# Installs the Debian packages whose commands are missing: system_packages.sh COMMAND=PACKAGE ...
# python-venv and python-headers stand for what no command shows. Does nothing where everything is there; where
# something is missing and there is no apt-get, says what.
set -eu

has() {
    case $1 in
        python-venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
        python-headers) python3 -c 'import os, sysconfig
os.stat(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

missing=
for pair in "$@"; do
    has "${pair%%=*}" || missing="$missing ${pair#*=}"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing here (Debian's names):$missing. This machine has no apt-get: please install them yourself." >&2
    exit 1
fi
root=
[ "$(id -u)" = 0 ] || root=sudo
echo "Installing:$missing"
$root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $missing >/dev/null
