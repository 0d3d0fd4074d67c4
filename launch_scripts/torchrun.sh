#!/usr/bin/env bash
# One node's part of a run; every argument goes to pretrain.py.
#
#   launch_scripts/torchrun.sh --train_data_dir data/mine --train_model transformer --depth 8 --train_name mup
#
# Environment, all optional:
#   GPUS_PER_NODE  processes on this node          (the GPUs that nvidia-smi lists, else 1)
#   NNODES         number of nodes                 (1)
#   NODE_RANK      which of them this one is       (Slurm's, else 0)
#   MASTER_ADDR    host name of node 0, or HOST:PORT (127.0.0.1)
#   MASTER_PORT    a free port there               (29500)
#   LOGDIR         also keep each process's output here
#   PYTHON         the interpreter                 (.venv's, else python)
# On several nodes run it once on each, all with the same arguments. Exits with the code of the first process that
# failed; a signal to torchrun leaves 1.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

default_python="$root/.venv/bin/python"
[ -x "$default_python" ] || default_python=python
default_gpus="$(nvidia-smi --list-gpus 2>/dev/null | grep -c GPU || true)"
[ "$default_gpus" -gt 0 ] || default_gpus=1

# How long torchrun waits for the checkpoint that pretrain.py writes on SIGTERM before it kills (default 30 s).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}"

# What torchrun passes on to pretrain.py. USR1, which Slurm sends with --signal=USR1@120, would kill it by default.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"

# HOST:PORT, as ArchScale's scripts have it; more colons are an IPv6 address.
case "${MASTER_ADDR:-}" in
*:*:*) ;;
*:*)
    MASTER_PORT="${MASTER_ADDR#*:}"
    MASTER_ADDR="${MASTER_ADDR%:*}"
    ;;
esac

options=(
    --nnodes "${NNODES:-1}"
    --nproc_per_node "${GPUS_PER_NODE:-$default_gpus}"
    --node_rank "${NODE_RANK:-${SLURM_NODEID:-0}}"
    --master_addr "${MASTER_ADDR:-127.0.0.1}"
    --master_port "${MASTER_PORT:-29500}"
)
[ -z "${LOGDIR:-}" ] || options+=(--log_dir "$LOGDIR" --tee 3)

# exec: signals reach torchrun, which passes SIGTERM on.
exec "${PYTHON:-$default_python}" "$root/lit_gpt/utils/torchrun.py" "${options[@]}" "$root/pretrain.py" "$@"
