#!/bin/sh
# nvcc_said.sh FILE NVCC ARGUMENT...: runs nvcc, keeps all that it says in FILE (ptxas -v: registers, stack, spills of
# every kernel, for tools/check_cuda_build.py), and shows what is more than that report.
said=$1
shift
"$@" >"$said" 2>&1
status=$?
grep -vE '^ptxas info +:|^ +[0-9]+ bytes stack frame' "$said"
exit $status
