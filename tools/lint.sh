#!/bin/sh
# Formatting, include law, Python's rules and types. Prints everything that is wrong, then fails.
set -u
cd "$(dirname "$0")/.."
failed=0
check() {
    echo "lint: $1"
    shift
    "$@" || failed=1
}
c_files() { git ls-files -co --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' | while read -r f; do [ -f "$f" ] && echo "$f"; done; }
formatted() { c_files | xargs clang-format --dry-run -Werror; }

check "C and CUDA formatting (make format mends it)" formatted
check "rooms and include law" python3 tools/check_rooms.py
check "ruff" ruff check --quiet .
check "Python formatting (make format mends it)" ruff format --quiet --check .
check "mypy" mypy --no-error-summary
exit $failed
