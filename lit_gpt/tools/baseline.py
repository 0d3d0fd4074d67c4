"""Train the strong baseline on one GPU, and say what it reached: validation loss, seconds of steps, memory.

python -m lit_gpt.tools.baseline

The corpus is the Python source of installed packages, in the tokens of a BPE that is trained on it; the recipe is
configs/baseline.yaml. What follows `--` are options of pretrain.py, which overrule it.
"""

from __future__ import annotations

import json
import statistics
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_gpt.config.cli import parse
from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.run import RunConfig
from lit_gpt.data.prepare import prepare
from lit_gpt.data.prepare.summary import summary as of_corpus
from lit_gpt.errors import UserError
from lit_gpt.metrics.summary import METRICS_FILE, SUMMARY_FILE, read_rows
from lit_gpt.tools._cli import local_path, parser_for

RECIPE = Path(__file__).parents[2] / "configs/baseline.yaml"
DATA = "data"  # the corpus, in the output folder
VOCABULARY = 32_000  # what the recipe is for
SIDE, PRODUCTS = 8192, 30  # of the matrices whose products say how fast the machine is, and how many are timed


def read(argv: list[str]) -> tuple[Namespace, list[str]]:
    """The parsed options of this tool, and those of pretrain.py after them."""
    ours, theirs = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = parser_for("baseline", "Train configs/baseline.yaml on one GPU; options of pretrain.py follow --.")
    packages = Path(sysconfig.get_paths()["purelib"])
    parser.add_argument("--source", type=local_path, default=packages, help="folder with Python files")
    parser.add_argument("--output", type=local_path, default=Path("out/baseline"), help="where data and runs go")
    return parser.parse_args(ours), theirs


answer_early(__name__, read)

import torch

from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.resolved_run import dry_run_text, resolve_run
from lit_gpt.train.loop import Trainer


def main(argv: list[str]) -> int:
    """Prepare, train, and print what came out. Raises UserError on a machine without a GPU, and for wrong options."""
    values, theirs = read(argv)
    run = options(values.output, theirs)
    plan = resolve_run(replace(run, dry_run=True), ranks=1)  # what is wrong is said before the corpus is made
    if run.dry_run:
        print(dry_run_text(plan))
        return 0
    if not torch.cuda.is_available():
        raise UserError(
            "The baseline trains on 120M tokens, which needs one GPU, and torch finds none here. `make demo` trains a "
            "small model on a CPU; `pretrain.py --config configs/baseline.yaml --dry_run` shows the Plan of this one."
        )
    corpus(values.source, values.output)
    folder, code = train(run)
    if code == 0:
        print(report(folder, products_per_second()))
    return code


def options(output: Path, theirs: Sequence[str]) -> RunConfig:
    """Those of one run in a folder of its own, named by the time."""
    data, out = output / DATA, output / time.strftime("%Y%m%d-%H%M%S")
    given = {"config": RECIPE, "train_data_dir": data, "val_data_dir": data, "out_dir": out}
    return parse([word for key, value in given.items() for word in (f"--{key}", str(value))] + list(theirs))


def corpus(source: Path, output: Path) -> None:
    """Prepare the data on the first call; one document in a hundred is held out."""
    bpe = {"tokenizer": "train", "vocab_size": VOCABULARY}
    print(of_corpus(prepare(str(source), str(output / DATA), include="*.py", validation_fraction=0.01, **bpe)))  # type: ignore[arg-type]


def train(run: RunConfig) -> tuple[Path, int]:
    """(the run folder, the exit code)."""
    resolved = resolve_run(run, ranks=1)
    print(dry_run_text(resolved), flush=True)
    result = Trainer(resolved, start_runtime(precision=run.precision)).fit()
    return result.folder, result.code


def products_per_second() -> float:
    """FLOPs per second of bf16 products of two square matrices: what speeds of two machines are divided by."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(PRODUCTS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * SIDE**3 / statistics.median(times)


def report(folder: Path, products: float | None = None) -> str:
    """What a finished run reached. products: FLOPs per second of the machine's matrix products, where they are known.

    Seconds of steps are those of training without validation, and without the first step, which compiles; it counts
    as the mean of the others.
    """
    found: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    rows, steps = read_rows(folder / METRICS_FILE), found["step"]
    first = next((row["time/train"] for row in rows if row["step"] == 1), 0.0)
    seconds = (found["time/train"] - first) * steps / max(steps - 1, 1)
    rates = [row["throughput/tokens_per_sec"] for row in rows if "throughput/tokens_per_sec" in row]
    peaks = [row["system/gpu_memory_peak_gib"] for row in rows if "system/gpu_memory_peak_gib" in row]
    loss, bits = found.get("metric/val_loss@1x"), found.get("metric/val_bpb@1x")
    measured = "not measured" if loss is None else f"{loss:.4f} nats per token, over the whole validation split"
    lines = [f"validation loss   {measured}"]
    lines += [f"bits per byte     {bits:.4f}"] if bits is not None else []
    lines += [f"seconds of steps  {seconds:.1f}, and {first:.0f} for the first step, which compiles"]
    lines += [f"speed             {statistics.median(rates):,.0f} tokens/s, the median"] if rates else []
    lines += [f"memory            {max(peaks):.1f} GiB at most"] if peaks else []
    lines += [f"products          {products / 1e12:.0f} TFLOP/s in bf16, {SIDE} cubed"] if products else []
    return "\n".join([*lines, f"run folder        {folder}"])


if __name__ == "__main__":
    run_command(main)
