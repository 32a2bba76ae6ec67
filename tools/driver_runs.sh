#!/bin/bash
# driver_runs.sh DRIVER: the runs of liger_test that together do what one run of it does, a line of arguments each, the
# longest first; for side_by_side.sh.
set -euo pipefail
operators=$("$1" --list)
echo "--mode history"
{
    grep '^linear_' <<<"$operators" || true
    echo core
    grep -v '^linear_' <<<"$operators"
} | sed 's/.*/--op & --mode each/; s/core --mode each/core/'
