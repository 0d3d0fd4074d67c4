#!/usr/bin/env bash
# ./eval_reason/eval_reason.sh [SEED] MODEL TASK OUT     launch.py says what these are
exec "${PYTHON:-python}" "$(dirname "$0")/launch.py" "$@"
