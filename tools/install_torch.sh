#!/bin/sh
# Installs the pinned torch before anything that depends on it: install_torch.sh PYTHON REQUIREMENTS
# Without a GPU the CPU build is taken, from pip's own sources if they have it, else from PyTorch's index; the default
# build would bring gigabytes of CUDA packages.
set -eu
python=$1
pin=$(grep -E '^torch==' "$2")
"$python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '${pin#torch==}')" 2>/dev/null && exit 0

pip() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }
echo "Installing $pin"
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    pip "$pin"
else
    pip "$pin+cpu" 2>/dev/null || pip --index-url https://download.pytorch.org/whl/cpu "$pin" || pip "$pin"
fi
