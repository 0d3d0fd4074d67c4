#!/usr/bin/env bash
# The one place that knows about platforms: makes .venv and installs the project in it.
#   bash install.sh                 core + dev tools (CPU torch where there is no NVIDIA GPU)
#   EXTRAS=dev,gpu,log bash install.sh
#   PYTHON=python3.12 bash install.sh
set -euo pipefail
cd "$(dirname "$0")"

EXTRAS="${EXTRAS:-dev}"
TORCH_VERSION="${TORCH_VERSION:-2.13.0}"
VENV="${VENV:-.venv}"

pick_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"; return
        fi
    done
    echo "No Python >= 3.10 found. Install one, or run: PYTHON=/path/to/python bash install.sh" >&2
    exit 2
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

if [ ! -x "$VENV/bin/python" ]; then
    "$(pick_python)" -m venv "$VENV"
fi
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

# Pin torch first, so that nothing below pulls another build of it.
if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    if has_nvidia_gpu || [ "$(uname -s)" = Darwin ]; then
        pip install "torch==$TORCH_VERSION"
    else
        # The CPU wheel is about 200 MB, the CUDA one several GB. "+cpu" builds come from the
        # index that TORCH_INDEX names; without it pip's own configuration decides.
        pip install "torch==$TORCH_VERSION" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
    fi
fi
pip install -e ".[$EXTRAS]"
touch "$VENV/.installed"
"$VENV/bin/python" - <<'PY'
import torch
print(f"ready: torch {torch.__version__}, {'CUDA ' + str(torch.version.cuda) if torch.cuda.is_available() else 'CPU'}")
PY
