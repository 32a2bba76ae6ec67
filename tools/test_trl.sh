#!/bin/sh
# usage: test_trl.sh PYTHON [pytest's options]
# The trainers of two older releases of TRL, whose losses are those of liger_kernel.chunked_loss, each with a release of
# transformers of its time. Both are installed beside the packages of PYTHON, in build/trl-<release>. A trainer that a release does
# not have is listed by pytest.
set -u
cd "$(dirname "$0")/.."
python=$1
shift
failed=0
while read -r release others; do
    home=build/trl-$release
    # shellcheck disable=SC2086 # several requirements
    tools/environment_beside.sh "$python" "$home" "trl==$release" $others || exit 1
    echo "trl $release, $others"
    "$home/bin/python" -m pytest tests/python/trl_trainers.py -rs "$@" </dev/null || failed=1
done <<RELEASES
0.24.0 transformers==4.57.6 datasets==5.0.1
1.12.0 transformers==5.17.0 datasets==5.2.0
RELEASES
exit $failed
