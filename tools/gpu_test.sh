#!/bin/bash
# The tests that need a GPU, and the CPU driver on this machine's processor. Installs nothing and needs no network: cmake,
# ninja, nvcc and a python3 with torch, transformers, pytest and hypothesis are on PATH. Builds for the GPU that is here.
#
#   STAGES="build driver-cpu"   these only, where one run would be too long; a later call finds the build of an earlier one
#   QUICK=1                     the short form: quick drivers, pytest without what is marked slow, no foreign PTX, no
#                               compute-sanitizer
#   STAGES="build pytest-multi" what needs two GPUs; no part of the rest
#   BUILD=build/gpu             where it is built
#
# Every stage is run, whatever fails; the last page says what passed, what did not run and why, and where the logs are.
set -uo pipefail
cd "$(dirname "$0")/.."
DEFAULT_STAGES="build harness-selftest fuzz driver-cpu driver-cuda driver-ptx pytest-cuda memcheck racecheck"
ALL_STAGES="$DEFAULT_STAGES pytest-multi"
STAGES=${STAGES:-$DEFAULT_STAGES}
QUICK=${QUICK:-}
BUILD=$(realpath -m "${BUILD:-build/gpu}")
LOGS=$BUILD/logs
JOBS=$(nproc)

for stage in $STAGES; do
    [[ " $ALL_STAGES " == *" $stage "* ]] || { echo "gpu-test: no stage $stage; there are: $ALL_STAGES"; exit 2; }
done
for tool in cmake ninja nvcc python3 nvidia-smi; do
    command -v "$tool" >/dev/null || { echo "gpu-test: $tool is not on PATH"; exit 1; }
done
# 9.0 -> 90a: Hopper's own instructions need the suffix.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
architecture=${capability/#90/90a}

mkdir -p "$LOGS"
SECONDS=0
failed=0
rows=()
quick=()
[ -n "$QUICK" ] && quick=(--quick)

# ---- the stages: stage_NAME, with _ for - ---------------------------------------------------------------------------

# configure_and_build FOLDER ARCHITECTURE ARGUMENT...
configure_and_build() {
    cmake -G Ninja -S . -B "$1" -DCMAKE_BUILD_TYPE=Release -DLIGER_CUDA=ON "-DLIGER_CUDA_ARCHS=$2" "${@:3}" &&
        cmake --build "$1" -j "$JOBS"
}
# driver NAME DRIVER COMMAND...: all that the driver does, in several processes of COMMAND.
driver() {
    tools/driver_runs.sh "$2" | tools/side_by_side.sh $((JOBS / 2 + 1)) "$LOGS/$1" "${@:3}"
}

stage_build() { configure_and_build "$BUILD" "$architecture" -DPython_EXECUTABLE="$(command -v python3)"; }
stage_harness_selftest() { "$BUILD/harness_selftest"; }
stage_fuzz() { "$BUILD/liger_fuzz"; }
stage_driver_cpu() { driver cpu "$BUILD/liger_test" "$BUILD/liger_test" --backend cpu "${quick[@]}"; }
stage_driver_cuda() { driver cuda "$BUILD/liger_test" "$BUILD/liger_test" --backend cuda "${quick[@]}"; }
# A library for an older GPU, which the driver compiles for this one: what it decides must follow what it was compiled
# for. It fails by never ending, so it has a time limit.
stage_driver_ptx() {
    configure_and_build "$BUILD-ptx" "" -DLIGER_CUDA_PTX=80 -DLIGER_BINDING=OFF -DLIGER_CPU_ISAS=best &&
        driver ptx "$BUILD-ptx/liger_test" timeout -k 10 240 "$BUILD-ptx/liger_test" --backend cuda --quick
}
# pytest_on_gpus PLACE ARGUMENT...
pytest_on_gpus() {
    PYTHONPATH=python:${PYTHONPATH:-} LIGER_NATIVE_DIR=$BUILD python3 -m pytest --device cuda -p no:cacheprovider -rsfE "$@"
}
stage_pytest_cuda() {
    local arguments=()
    [ -n "$QUICK" ] && arguments+=(-m "not slow")
    python3 -c 'import xdist' 2>/dev/null && arguments+=(-n $((JOBS * 3 / 4)))
    pytest_on_gpus tests/python "${arguments[@]}"
}
# Processes with a GPU each, replicas, tensors on a GPU that is not current.
stage_pytest_multi() {
    pytest_on_gpus tests/python/test_vocab_parallel.py tests/python/test_patch_copies.py tests/python/test_operators_on_cuda.py
}
# A checked kernel runs a hundred times longer, most of it on the host: small ragged shapes only.
sanitizer() {
    "$BUILD/liger_test" --list | sed 's/^/--op /' | tools/side_by_side.sh $((JOBS / 2)) "$LOGS/$1" \
        compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
        "$BUILD/liger_test" --backend cuda --quick --mode parity
}
stage_memcheck() { sanitizer memcheck; }
stage_racecheck() { sanitizer racecheck; }

# ---- the run --------------------------------------------------------------------------------------------------------

# why_not STAGE: the reason not to run it, if there is one.
why_not() {
    [[ " $STAGES " == *" $1 "* ]] || { echo "not among STAGES"; return; }
    [[ "${rows[*]}" =~ build\ +FAILED ]] && { echo "the build failed"; return; }
    case $1 in
        driver-ptx | memcheck | racecheck) [ -n "$QUICK" ] && { echo "not in the quick form"; return; } ;;
    esac
    case $1 in
        driver-ptx) [ "$capability" -ge 80 ] || echo "this GPU is older than sm_80" ;;
        pytest-multi) [ "$(nvidia-smi -L | wc -l)" -ge 2 ] || echo "there is one GPU" ;;
        memcheck | racecheck) compute-sanitizer --version >/dev/null 2>&1 || echo "no compute-sanitizer on PATH" ;;
    esac
}
# step STAGE: runs it, keeps the log, remembers the outcome and the log's last line.
step() {
    local start=$SECONDS outcome=passed log=$LOGS/$1.log
    echo "== $1"
    if [ "$1" != build ] && [ ! -x "$BUILD/liger_test" ]; then
        echo "the stage build comes first: there is no $BUILD/liger_test" >"$log"
        outcome=FAILED
    else
        "stage_${1//-/_}" >"$log" 2>&1 || outcome=FAILED
    fi
    row "$1" $outcome "$(printf '%4d s  %s' $((SECONDS - start)) "$(grep -v '^ *$' "$log" | tail -n 1 | cut -c 1-72)")"
    [ $outcome = passed ] && return
    failed=1
    tail -n 30 "$log"
    grep -hsE '^ +FAILED' "$LOGS/${1#driver-}"-*.log | head -n 20 # a driver's checks, which its processes have written
}
row() { rows+=("$(printf '%-17s %-8s %s' "$@")"); }

for stage in $ALL_STAGES; do
    reason=$(why_not "$stage")
    if [ -n "$reason" ]; then row "$stage" "not run" "$reason"; else step "$stage"; fi
done

echo
echo "==================================== gpu-test ${QUICK:+(quick) }===================================="
echo "GPU        $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)"
echo "CPU        $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $JOBS cores"
echo "nvcc       $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'), built for sm_$architecture"
echo "python     $(python3 -c 'import sys, torch, transformers
print(sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)' 2>&1 | tail -n 1)"
echo
printf '%s\n' "${rows[@]}"
echo
# What the stages that ran left out, in their own words.
for stage in $STAGES; do
    [ -f "$LOGS/$stage.log" ] && grep -hE '^SKIPPED|not here|not applicable' "$LOGS/$stage.log" | sort -u | sed "s/^/$stage: /"
done
echo "logs in $LOGS; $SECONDS s in all; $([ $failed = 0 ] && echo 'everything that ran passed' || echo 'SOMETHING FAILED')"
exit $failed
