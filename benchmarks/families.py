"""Judge the runs of a sweep over families: cloze questions, bits per byte by position, phonebooks of many lengths.

    python benchmarks/families.py --sweep out/families --data data/py4k --output out/families_judged

Reads the folder that launch_scripts/sweep.py made of a table with the columns name, train_model and seed. With --wait
it judges each run as it ends, for so many minutes at most. families.json, and families.txt with its table, are written
anew after every run; plots/plot_families.py draws them. All questions are made of the validation data, and are the same
for every run.

intervals.py beside this file says what the intervals are. The first run that is judged also says how much of the cloze
questions is in the training data.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from intervals import differences, of_families

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.data.kept_tokenizer import describe_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.held_out import documents
from lit_gpt.evals.overlap import streams_of
from lit_gpt.evals.results import read_results
from lit_gpt.evals.tasks.phonebook import NEW_TOKENS, question
from lit_gpt.metrics.summary import read_metrics
from lit_gpt.utils.files import write_text
from lit_gpt.utils.text import aligned


def main(
    sweep: Path,
    data: str,
    output: Path,
    length: int = 2048,
    questions: int = 400,
    wait: float = 0.0,
    runs: int = 6,
    base: str = "transformer",
) -> None:
    """Judge the runs of a sweep over families.

    Args:
        sweep: folder of the sweep
        data: folder of the tokens that the runs were trained and validated on
        output: folder for families.json and families.txt, and for the answers to every question
        length: context of the runs, in tokens
        questions: cloze questions of each kind, and windows; an eighth as many phonebooks of each length
        wait: minutes after which no run is judged any more; default: judge those that have ended
        runs: how many runs to wait for
        base: the family that the others are compared with
    """
    output.mkdir(parents=True, exist_ok=True)
    end, asked, done = time.monotonic() + 60 * wait, words_of(data, output, length, questions), set[str]()
    found: dict[str, Any] = {}
    while True:
        rows = runs_of(sweep) if sweep.is_dir() else []
        for run in rows:
            if run.summary and run.name not in done and not (wait and done and time.monotonic() > end):
                judge_run(run, asked, output, None if done else data)
                done.add(run.name)
                found = report([run for run in rows if run.name in done], output, base)
        if len(done) >= runs or time.monotonic() > end:
            break
        time.sleep(1.0)
    if not done:
        raise UserError(f"No run in {sweep} has ended. Wait longer, or train with launch_scripts/sweep.py first.")
    print(table(found))


answer_early(__name__, reader_of(main))

import torch

from lit_gpt.tools.evaluate import judge

LOSS, BPB = "metric/val_loss@1x", "metric/val_bpb@1x"
LENGTHS, SHORTEST = 8, 3  # of phonebooks, and entries of the shortest: two are examples
TABLE = ("val_loss", "val_bpb", "choice_acc", "choice_p", "choice_nats", "name_acc", "name_gain", "bpb", "acc", "nats")


class Run(NamedTuple):
    """name: of the row. folder: of the run, None before there is one. summary: {} before it has ended."""

    name: str
    family: str
    seed: int
    folder: Path | None
    summary: dict[str, Any]


def runs_of(sweep: Path) -> list[Run]:
    """All rows of a sweep, as far as they have got; in the order in which they began."""
    rows = sorted(sweep.glob("*/row.json"), key=lambda path: (path.stat().st_mtime_ns, path))
    found = []
    for path in rows:
        row = json.loads(path.read_text(encoding="utf-8"))
        folder = next((p.parent for p in path.parent.glob("*/summary.json")), None)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8")) if folder else {}
        summary = summary if summary.get("finished") else {}
        found.append(Run(row["name"], row["train_model"], int(row["seed"]), folder, summary))
    return found


def cut_windows(data: str, output: Path, length: int, most: int) -> Path:
    """length + 1 tokens of held-out documents that are so long, end to end; `most` of them, evenly chosen."""
    kept = describe_tokenizer(data)
    if kept is None or kept.eos_id is None:
        raise UserError(f"{data} does not say which token ends a document. Prepare it with prepare_text.py.")
    found = [
        ids[start : start + length + 1]
        for ids in documents(streams_of(data, "validation"), kept.eos_id, kept.bos_id)
        for start in range(0, len(ids) - length, length + 1)
    ]
    if not found:
        raise UserError(
            f"No document in the validation data of {data} has {length + 1} tokens. Give a shorter --length."
        )
    count = min(most, len(found))
    chosen = [found[i * len(found) // count] for i in range(count)]
    path = output / "windows.npy"
    np.save(path, np.concatenate(chosen))
    return path


def longest_book(data: str, length: int) -> int:
    """The most entries, a multiple of LENGTHS, whose question fits into `length` tokens."""
    kept = describe_tokenizer(data)
    assert kept is not None, "cut_windows checks it"
    encode, step = kept.load().encode, LENGTHS
    room = 0.95 * length - NEW_TOKENS  # other names and numbers are a little longer
    while len(encode(question(step + LENGTHS, "0")[0])) <= room:
        step += LENGTHS
    return step


def words_of(data: str, output: Path, length: int, questions: int) -> dict[str, list[str]]:
    """The options of each evaluation."""
    windows = cut_windows(data, output, length, questions)  # first, for it knows a length that no document has
    answer = min(24, length // 16)
    context = length - max(128, length // 16) if length >= 512 else length - 2 * answer
    far = longest_book(data, length)
    books = max(1, questions // 8)
    return {
        "cloze": ["--data_dir", data, "--questions", f"{questions}", "--context", f"{context}", "--length", f"{answer}"]
        + ["--near", f"{max(24, length // 16)}", "--middle", f"{max(48, length // 4)}"],
        "proofpile": ["--data_path", f"{windows}", "--seq_length", f"{length}"]
        + ["--sliding_window", f"{length + 1}", "--batch_size", "16"],
        "phonebook": [
            "--min_eval_len",
            f"{max(SHORTEST, far // LENGTHS)}",
            "--max_eval_len",
            f"{far}",
            "--num_eval",
            f"{LENGTHS - 1}",
        ]
        + ["--eval_num_batches", f"{books}", "--eval_batch_size", "1"],
    }


def judge_run(run: Run, asked: dict[str, list[str]], output: Path, training_data: str | None = None) -> None:
    """All evaluations of one run; one that fails is told, and the others go on.

    training_data: where to look for the cloze questions.
    """
    for task, words in asked.items():
        ours = ["--checkpoint_path", str(run.folder), "--answers", str(output / f"{run.name}.{task}.jsonl")]
        ours += ["--decontaminate", training_data] if training_data and task == "cloze" else []
        started = time.monotonic()
        try:
            judge(task, [*ours, *words])
        except Exception:
            traceback.print_exc()
        print(f"{run.name}: {task} took {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def described(run: Run) -> dict[str, Any]:
    """What a run is, and its figures with their standard errors."""
    assert run.folder is not None
    curve = read_metrics(run.folder / "metrics.jsonl")
    points = [[int(t), round(v, 5)] for t, v in zip(curve["total_tokens"], curve.get(LOSS, [])) if math.isfinite(v)]
    figures = {"val_loss": [run.summary.get(LOSS), None], "val_bpb": [run.summary.get(BPB), None]}
    asked: dict[str, Any] = {}
    for result in read_results(run.folder):
        figures |= {name: [metric.value, metric.stderr] for name, metric in result.metrics.items()}
        asked[result.task] = result.settings.get("asked", result.examples)
    facts = {name: figures.pop(name) for name in ("contaminated", "overlap") if name in figures}
    kept = {name: value for name, value in figures.items() if value[0] is not None}
    facts |= {
        "parameters": run.summary["parameters/non_embedding"],
        "flops_per_token": run.summary["model_flops_per_token"],
        "tokens": run.summary["tokens"],
        "tokens_per_sec": run.summary.get("throughput/tokens_per_sec"),  # a run of one step has none
    }
    facts |= {"asked": asked, "curve": points, "figures": kept}
    return {"name": run.name, "family": run.family, "seed": run.seed, **facts}


def read_answers(output: Path, name: str) -> dict[str, np.ndarray]:
    """Figure -> of one run, its value for every example that has it."""
    found: dict[str, list[float]] = {}
    for path in sorted(output.glob(f"{name}.*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            for figure, value in json.loads(line).items():
                found.setdefault(figure, []).append(value)
    return {figure: np.array(values) for figure, values in found.items()}


def report(runs: Sequence[Run], output: Path, base: str) -> dict[str, Any]:
    """Write families.json and families.txt of runs that have ended, the family `base` first; return what they say."""
    rows = sorted((described(run) for run in runs), key=lambda row: row["family"] != base)
    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "runs": rows,
        "families": of_families(rows),
        "differences": differences(rows, {row["name"]: read_answers(output, row["name"]) for row in rows}),
    }
    write_text(output / "families.json", json.dumps(found, default=float) + "\n")
    write_text(output / "families.txt", table(found) + "\n")
    return found


def table(found: dict[str, Any]) -> str:
    """The figures of TABLE, one on a line, for each family; then how the others differ from the first."""
    families, differing = found["families"], found["differences"]
    header = ["figure", *families, *(f"{family} - {next(iter(families))}" for family in differing)]
    names = dict.fromkeys(name for figures in families.values() for name in figures)
    known = [name for name in names if name.partition("@")[0] in TABLE]
    cells = [header]
    for name in sorted(known, key=lambda name: TABLE.index(name.partition("@")[0])):
        intervals = [figures.get(name) for figures in (*families.values(), *differing.values())]
        cells.append([name, *("-" if one is None else f"{one[0]:.4f} +- {one[1]:.4f}" for one in intervals)])
    return aligned(cells)


if __name__ == "__main__":
    run_command(command_of(main))
