#!/bin/bash
# side_by_side.sh JOBS LOG COMMAND...: runs COMMAND once for each line of the input, which is more arguments for it, JOBS at
# a time. The output of each goes to LOG-<its arguments>.log, then all of it is shown, then which runs failed, and what passed
# is added up. Fails if a run fails or nothing was run.
set -u
jobs=$1 log=$2
shift 2
mkdir -p "$(dirname "$log")"
rm -f "$log"-*.log
failed=0
# shellcheck disable=SC2016 # expanded by the inner shell
xargs -P "$jobs" -I LINE bash -c '
    read -ra arguments <<<"$1"
    log=$2-$(tr -dc "a-z0-9_" <<<"$1").log
    "${@:3}" "${arguments[@]}" >"$log" 2>&1 && exit
    echo "$1: exit status $?" >>"$log"
    exit 1' bash LINE "$log" "$@" || failed=1
cat "$log"-*.log || failed=1
[ "$failed" = 0 ] || grep -h ": exit status [0-9]*$" "$log"-*.log # again, where the end of the log is looked at
awk '/ passed, [0-9]+ failed$/ {p += $1; f += $3} END {print p + 0 " passed, " f + 0 " failed"}' "$log"-*.log
exit $failed
