#!/bin/sh
# usage: test_transformers.sh PYTHON [pytest's options]
# The families' tests and their grid on three releases of transformers. Each release is installed beside the packages of
# PYTHON, in build/transformers-<release>. What a release does not have is listed by pytest, with the reason.
set -u
cd "$(dirname "$0")/.."
python=$1
shift
failed=0
for release in ${TRANSFORMERS:-5.24.0 5.17.0 4.57.6}; do
    home=build/transformers-$release
    tools/environment_beside.sh "$python" "$home" "transformers==$release" || exit 1
    echo "transformers $release"
    "$home/bin/python" -m pytest tests/python/test_families.py tests/python/grid_families.py -rs "$@" || failed=1
done
exit $failed
