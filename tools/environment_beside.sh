#!/bin/sh
# usage: environment_beside.sh PYTHON HOME REQUIREMENT...
# A virtual environment in HOME that has the packages of PYTHON and, before them, the required releases. What stands there
# already is not made again. The package itself comes from PYTHONPATH; its metadata, which some releases of transformers
# want to see before they use it, stands in HOME as it does where the wheel is installed.
set -eu
python=$1 home=$2
shift 2
[ "$(cat "$home/installed" 2>/dev/null)" != "$*" ] || exit 0
"$python" -m venv --clear "$home"
find_packages='import sysconfig; print(sysconfig.get_path("purelib"))'
packages=$("$home/bin/python" -c "$find_packages")
"$python" -c "$find_packages" >"$packages/zz_more_packages.pth"
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$(dirname "$0")/../python/liger_kernel/__init__.py")
mkdir "$packages/liger_kernel-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: liger-kernel\nVersion: %s\n' "$version" >"$packages/liger_kernel-$version.dist-info/METADATA"
"$home/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
echo "$*" >"$home/installed"
