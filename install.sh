#!/usr/bin/env bash
# Makes .venv and installs the project in it. Here only a Python is chosen; scripts/install.py does the rest.
#   bash install.sh --dry-run           what would be installed
#   EXTRAS=dev,kernels bash install.sh  with kernels; other settings: PYTHON, VENV, TORCH_VERSION, TORCH_INDEX
#   bash install.sh --help              what they mean
set -eu
cd "$(dirname "$0")"

for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null; then
        exec "$candidate" scripts/install.py "$@"
    fi
    if [ "$candidate" = "${PYTHON:-}" ]; then # what was asked for is not replaced in silence
        echo "error: PYTHON is $PYTHON, which is no Python 3.10 or newer. Give the path of one, or leave PYTHON out." >&2
        exit 2
    fi
done
echo "error: No Python 3.10 or newer was found. Install one, or type: PYTHON=/path/to/python3 bash install.sh" >&2
exit 2
