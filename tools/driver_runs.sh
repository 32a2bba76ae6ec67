#!/bin/bash
# driver_runs.sh DRIVER: the runs of liger_test that together do what one run of it does, a line of arguments each, the
# longest first; for side_by_side.sh.
set -euo pipefail
echo "--mode history"
echo "--op core"
"$1" --list | sed 's/.*/--op & --mode each/'
