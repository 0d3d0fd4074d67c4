"""A study as a script for other machines: one command per run, or an array of Slurm."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.lab.planning import Planned
from lit_gpt.lab.processes import Settings, command
from lit_gpt.lab.rows import NOTE

LADDER = Path(__file__).resolve().parents[2] / "launch_scripts/ladder.py"


def shell_script(rows: Sequence[Planned], processes: int, output: Path) -> str:
    """A bash script of one command per run, to be started in the repository on any machine; a run that is finished ends
    at once, so the script can be started again. A run that fails does not stop the others; one that is interrupted
    does. processes: of each run, with torchrun where there are several.
    """
    # The repository's torchrun, which ends with the code of the run: an interrupted one's is asked for below.
    several = ("lit_gpt/utils/torchrun.py", "--standalone", "--nproc_per_node", str(processes))
    launcher = ("python", *(several if processes > 1 else ()))
    settings = Settings(launcher, program=Path("pretrain.py"))
    folders = {p.row.name: output / p.row.name / p.resolved.folder.name for p in rows}
    lines = ["#!/usr/bin/env bash", "set -uo pipefail", "failed=", 'run() { "${@:2}" || ended $? "$1"; }']
    lines += [f'ended() {{ [ "$1" -ne {os.EX_TEMPFAIL} ] || exit "$1"; failed+=" $2"; }}']
    for p in rows:
        folder, note = shlex.quote(str(output / p.row.name)), shlex.quote(json.dumps(p.row.note()))
        words = command(p.row, settings, output, None, folders.get(p.row.after or ""))
        lines += [
            f"mkdir -p {folder} && printf '%s\\n' {note} > {folder}/{NOTE}",
            shlex.join(["run", p.row.name, *words]),
        ]
    lines += ['[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }']
    return "\n".join(lines)


def array_script(names: Sequence[str], words: Sequence[str], gpus: int, minutes: float) -> str:
    """An sbatch script whose tasks run one row each through ladder.py, so that none runs twice and cut ones go on.

    words: STUDY and what follows `run --only NAME` for ladder.py. Two minutes before the time limit of `minutes` a
    task saves its run and puts itself into the queue again.
    """
    start = shlex.join([sys.executable, str(LADDER), words[0]])
    limit = f"#SBATCH --time={round(minutes)}" if minutes < 1e9 else "# add: #SBATCH --time=MINUTES"
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"#SBATCH --array=0-{len(names) - 1}",
            f"#SBATCH --gpus-per-node={gpus}",
            "#SBATCH --nodes=1",
            limit,
            "#SBATCH --requeue",
            "#SBATCH --signal=B:TERM@120",
            f"names=({' '.join(map(shlex.quote, names))})",
            f'{start} run --only "${{names[$SLURM_ARRAY_TASK_ID]}}" {shlex.join(words[1:])} &',
            "child=$!; trap 'kill -TERM $child; wait $child; scontrol requeue \"$SLURM_JOB_ID\"; exit 0' TERM",
            "wait $child",
        ]
    )
