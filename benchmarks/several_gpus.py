"""How well several GPUs work together: the trainer on one, on each by itself at the same time, and on all with FSDP2.

    python benchmarks/several_gpus.py --gpus 2 --sizes 8:16,16:8 --output docs/benchmarks/two_gpus.json

`alone` is one GPU. `apart` is a process on each GPU, all at once, that do not talk: GPUs of one machine differ, and
share power and cooling, so this is what communication can at best reach. `together` is torchrun. The profile of one
step of `together` says how long kernels of NCCL ran, how much of that no other kernel hid, and how long nothing ran;
that of `alone` is there to compare kernels with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from sizes import CONTEXT

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command

WAYS = ("alone", "apart", "together")
TOGETHER = ("fp8_gather", "expert_parallel")  # options that a process by itself refuses, and so does not get


def main(
    gpus: int = 2,
    family: str = "transformer",
    sizes: str = "8:16,16:8",
    context: int = CONTEXT,
    steps: int = 40,
    warmup: int = 15,
    batch: int = 0,
    options: dict[str, Any] | None = None,
    ways: str = ",".join(WAYS),
    profile: int = 45,
    output: str | None = None,
    one: bool = False,
    folder: str | None = None,
) -> None:
    """Measure a family at every size in each way, and print a table.

    Args:
        gpus: how many of this machine.
        family: a model family.
        sizes: comma-separated depth:micro_bsz pairs.
        context: tokens of a sequence.
        steps: timed steps per row.
        warmup: steps before them.
        batch: tokens of a step of all GPUs of a row; default one micro-batch each.
        options: further pretrain.py options, such as {keep_gathered: true} or {reduce_precision: bf16}.
        ways: comma-separated, of alone, apart and together; alone is always measured.
        profile: kernels with the most time of one step that the JSON lists; 0 for no profile.
        output: JSON file for the rows.
        one: internal; measure in this process and print a line of JSON.
        folder: internal; which all processes of torchrun see.
    """
    if one:
        depth, micro = map(int, sizes.split(":"))
        row = measure(family, depth, micro, context, steps, warmup, batch, options or {}, profile, folder)
        if row:
            print(json.dumps(row), flush=True)
        return
    found: list[dict[str, Any]] = []
    for size in sizes.split(","):
        print(f"{family} d{size.replace(':', ', micro-batch ')}, {options or 'defaults'}")
        alone = 0.0
        for way in dict.fromkeys(["alone", *ways.split(",")]):
            words = ["--family", family, "--sizes", size, "--context", str(context), "--steps", str(steps)]
            given = {k: v for k, v in (options or {}).items() if way == "together" or k not in TOGETHER}
            words += ["--warmup", str(warmup), "--batch", str(batch), "--options", json.dumps(given)]
            rows = rows_of(way, gpus, [*words, "--profile", str(0 if way == "apart" else profile)])
            alone = alone or rows[0]["tokens_per_sec"]
            print(line(way, rows, alone), flush=True)
            found += [{"way": way, **row} for row in rows]
            write(found, output)


answer_early(__name__, reader_of(main))

from train_step import measure, write


def commands(way: str, gpus: int, folder: str, words: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """What to start at the same time for a way, each with its environment. folder: which all processes see."""
    one = [__file__, "--one", "true", *words]
    if way == "together":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
        return [([sys.executable, *launcher, *one, "--folder", folder], {})]
    given = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    visible = given.split(",")[: gpus if way == "apart" else 1]
    return [([sys.executable, *one], {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in visible]


def rows_of(way: str, gpus: int, words: list[str]) -> list[dict[str, Any]]:
    """The row of each process of a way that prints one; ends this program where one of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(command, env=os.environ | extra, stdout=subprocess.PIPE, text=True)
            for command, extra in commands(way, gpus, folder, words)
        ]
        printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{way} failed; what it said is above.")
    return [json.loads(line) for text in printed for line in text.splitlines() if line.startswith("{")]


def line(way: str, rows: list[dict[str, Any]], alone: float) -> str:
    """A row of the table. alone: tokens per second of one GPU."""
    rates = [row["tokens_per_sec"] for row in rows]
    first = max(row["first_step_seconds"] for row in rows)
    text = f"{way:<10}{sum(rates):>12,.0f} tokens/s{sum(rates) / alone:>8.3f}x  first step {first:.1f} s"
    text += f"  of {', '.join(f'{rate:,.0f}' for rate in rates)}" if len(rates) > 1 else ""
    if found := rows[0].get("overlap"):
        text += (
            f"  one step {found['span_ms']:.1f} ms: NCCL {found['communication_ms']:.1f}, of which nothing hid "
            f"{found['exposed_ms']:.1f}; idle {found['idle_ms']:.1f}; {found['collectives']}"
        )
    return text


if __name__ == "__main__":
    run_command(command_of(main))
