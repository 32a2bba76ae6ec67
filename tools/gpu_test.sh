#!/bin/bash
# The tests that need a GPU, and the CPU driver on this machine's processor. Installs nothing and needs no network: cmake,
# ninja, nvcc and a python3 with torch, transformers, pytest and hypothesis are on PATH. Builds for the GPU that is here.
#
#   QUICK=1   the short form: quick drivers, pytest without what is marked slow, no compute-sanitizer
#
# Everything is run, whatever fails; the last page says what passed, how long it took and where the logs are.
set -u
cd "$(dirname "$0")/.."
QUICK=${QUICK:-}
BUILD=${BUILD:-build/gpu}
LOGS=$BUILD/logs
JOBS=$(nproc)
mkdir -p "$LOGS"
SECONDS=0
failed=0
rows=()

for tool in cmake ninja nvcc python3 nvidia-smi; do
    command -v "$tool" >/dev/null || { echo "gpu-test: $tool is not on PATH"; exit 1; }
done

# step NAME COMMAND...: runs, keeps the log, remembers the outcome and the log's last line.
step() {
    local name=$1 start=$SECONDS outcome last
    shift
    echo "== $name"
    if "$@" >"$LOGS/$name.log" 2>&1; then outcome=passed; else outcome=FAILED; failed=1; fi
    last=$(grep -v '^ *$' "$LOGS/$name.log" | tail -n 1 | cut -c 1-72)
    rows+=("$(printf '%-22s %-7s %4d s  %s' "$name" "$outcome" $((SECONDS - start)) "$last")")
    [ $outcome = passed ] || tail -n 30 "$LOGS/$name.log"
}

# 9.0 -> 90a: Hopper's own instructions need the suffix.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
[ "$capability" = 90 ] && capability=90a

build() {
    cmake -G Ninja -S . -B "$BUILD" -DCMAKE_BUILD_TYPE=Release -DLIGER_CUDA=ON "-DLIGER_CUDA_ARCHS=$capability" \
        -DPython_EXECUTABLE="$(command -v python3)" && cmake --build "$BUILD" -j "$JOBS"
}
pytest_on() {
    PYTHONPATH=python:${PYTHONPATH:-} LIGER_NATIVE_DIR=$PWD/$BUILD \
        python3 -m pytest tests/python --device "$1" -p no:cacheprovider "${@:2}"
}
# per_operator NAME COMMAND...: one driver per operator, several at once, a log each; adds up what passed.
per_operator() {
    local name=$1 failed=0
    shift
    rm -f "$LOGS/$name"-*.log
    "$BUILD/liger_test" --list | xargs -P $((JOBS / 2)) -I OPERATOR bash -c '"${@:3}" --op "$2" >"$1-$2.log" 2>&1' \
        bash "$LOGS/$name" OPERATOR "$@" || failed=1
    cat "$LOGS/$name"-*.log
    awk '/ passed, [0-9]+ failed$/ {p += $1; f += $3} END {print p " passed, " f " failed"}' "$LOGS/$name"-*.log
    return $failed
}
driver_cuda() {
    "$BUILD/liger_test" --backend cuda --op core && per_operator cuda "$BUILD/liger_test" --backend cuda "$@"
}
# PTX of an older GPU, which this one compiles for itself, as it does for a build that is older than it. What the host
# decides must follow what kernels were compiled for: where it does not, a kernel may never end.
driver_older_code() {
    cmake -G Ninja -S . -B "$BUILD-older" -DCMAKE_BUILD_TYPE=Release -DLIGER_CUDA=ON -DLIGER_CUDA_ARCHS= \
        -DLIGER_CUDA_PTX=80 -DLIGER_BINDING=OFF && cmake --build "$BUILD-older" -j "$JOBS" --target liger_test &&
        per_operator older-code timeout 400 "$BUILD-older/liger_test" --backend cuda --quick
}
# A checked kernel runs a hundred times longer, most of it on the host: small ragged shapes only.
sanitizer() {
    per_operator "$1" compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
        "$BUILD/liger_test" --backend cuda --quick --mode parity
}

quick=()
[ -n "$QUICK" ] && quick=(--quick)
step build build
if [ -x "$BUILD/liger_test" ]; then
    step harness-selftest "$BUILD/harness_selftest"
    step fuzz "$BUILD/liger_fuzz"
    step driver-cpu "$BUILD/liger_test" --backend cpu --quick
    step driver-cuda driver_cuda "${quick[@]}"
    step driver-older-code driver_older_code
    pytest_arguments=()
    [ -n "$QUICK" ] && pytest_arguments=(-m "not slow")
    python3 -c 'import xdist' 2>/dev/null && pytest_arguments+=(-n $((JOBS / 2)))
    step pytest-cuda pytest_on cuda "${pytest_arguments[@]}"
    if [ -z "$QUICK" ]; then
        if compute-sanitizer --version >/dev/null 2>&1; then
            step memcheck sanitizer memcheck
            step racecheck sanitizer racecheck
        else
            rows+=("compute-sanitizer      absent: memcheck and racecheck were not run")
        fi
    fi
fi

echo
echo "==================================== gpu-test ${QUICK:+(quick) }===================================="
echo "GPU        $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)"
echo "CPU        $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $JOBS cores"
echo "nvcc       $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'), built for sm_$capability"
echo "python     $(python3 -c 'import sys, torch, transformers
print(sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)' 2>&1 | tail -n 1)"
echo
printf '%s\n' "${rows[@]}"
echo
grep -h 'not here' "$LOGS"/driver-cpu.log 2>/dev/null | sed 's/^/driver-cpu: /'
echo "logs in $LOGS; $SECONDS s in all; $([ $failed = 0 ] && echo 'everything passed' || echo 'SOMETHING FAILED')"
exit $failed
