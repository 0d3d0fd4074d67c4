"""Tokens per second, MFU and memory of the whole trainer: data, logging, clipping, optimizer.

    python benchmarks/train_step.py --sizes 8:16,16:8,24:4 --output docs/benchmarks/train_step_h200.json
    python benchmarks/train_step.py --families transformer,sambay --sizes 8:16,16:8 --contexts 4096,32768
    python benchmarks/train_step.py --recipes bf16,tensorwise,torchao_tensorwise --sizes 8:16,16:8,24:4

Each family runs in a process of its own, through the same Trainer as pretrain.py, on packed
shards of random tokens; a step is one micro-batch, so the optimizer's cost is at its highest,
or --batch tokens of several.
The rate is the median over the steps after the warm-up, each timed on the device. MFU counts
model FLOPs (causal attention, no recomputation) against the dense bf16 peak of the device; mfu_palm, of the JSON,
those of PaLM's convention (lit_gpt/metrics/throughput.py).
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from sizes import CONTEXT, VOCAB

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.data.formats.packed import write_shard
from lit_gpt.metrics.throughput import peak_flops
from lit_gpt.utils.files import write_text


def main(
    families: str = "transformer",
    sizes: str = "8:16,16:8,24:4",
    contexts: str = str(CONTEXT),
    steps: int = 40,
    warmup: int = 10,
    batch: int = 0,
    output: str | None = None,
    one: bool = False,
    options: dict[str, Any] | None = None,
    profile: int = 0,
    recipes: str = "bf16",
) -> None:
    """Measure every family at every size and context, and print a table.

    Args:
        families: comma-separated model families.
        sizes: comma-separated depth:micro_bsz pairs; micro_bsz is for a context of 4096 and
            shrinks as the context grows, to the same tokens.
        contexts: comma-separated context lengths.
        steps: timed steps per row.
        warmup: steps before them, of which the first compiles.
        batch: tokens of a step, rounded down to whole micro-batches; default one micro-batch.
        output: JSON file for the rows.
        one: internal; measure in this process and print a line of JSON per row.
        options: further pretrain.py options, such as {residual_precision: bf16}.
        profile: one more step under a profiler; the rows get that many kernels, those with the most time.
        recipes: comma-separated, bf16 and recipes of --fp8, one after the other at each size.
    """
    pairs = [(int(d), int(m)) for d, m in (pair.split(":") for pair in sizes.split(","))]
    runs = [(int(c), d, m, r) for c in contexts.split(",") for d, m in pairs for r in recipes.split(",")]
    todo = [(f, *run) for f in families.split(",") for run in runs]
    if one:
        for family, context, depth, micro, recipe in todo:
            micro = max(min(micro, micro * CONTEXT // context), 1)
            given = (options or {}) | ({} if recipe == "bf16" else {"fp8": True, "fp8_recipe": recipe})
            row = measure(family, depth, micro, context, steps, warmup, batch, given, profile)
            print(json.dumps(row), flush=True)
            free()
        return
    rows: list[dict[str, Any]] = []
    print(HEADER)
    for family in families.split(","):
        words = ["--families", family, "--sizes", sizes, "--contexts", contexts, "--one", "true"]
        words += ["--steps", str(steps), "--warmup", str(warmup), "--batch", str(batch), "--profile", str(profile)]
        words += ["--options", json.dumps(options or {}), "--recipes", recipes]
        with subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for text in process.stdout:
                if text.startswith("{"):
                    rows.append(json.loads(text))
                    print(line(rows[-1]), flush=True)
                    write(rows, output)
    if len(rows) < len(todo):
        sys.exit(f"{len(todo) - len(rows)} of {len(todo)} rows failed; what they said is above.")


answer_early(__name__, reader_of(main))

import torch
from timing import where_and_overlap

from lit_gpt.parallel import start_runtime
from lit_gpt.parallel.compile_cache import CompileCache
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.loop import Trainer
from lit_gpt.train.reporter import Reporter
from lit_gpt.train.run_folder import write_archive
from lit_gpt.utils.launcher import world_size


class StepTimer:
    """When it began and every step ended: CUDA events, read once at the end, or the clock where there is no GPU."""

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        self.marks.append(torch.cuda.Event(enable_timing=True) if self.on_gpu else time.perf_counter())
        if self.on_gpu:
            self.marks[-1].record()

    def seconds(self) -> np.ndarray:
        """Length of each step."""
        if self.on_gpu:
            torch.cuda.synchronize()
            return np.array([a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:])])
        return np.diff(self.marks)


def device_name() -> str:
    """The GPU, or where there is none the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def speeds(times: np.ndarray, tokens: int) -> dict[str, Any]:
    """Tokens per second of steps of so many tokens that took so many seconds: median, mean, quartiles."""
    low, middle, high = (tokens / np.quantile(times, [0.75, 0.5, 0.25])).round(1).tolist()
    mean = round(tokens / float(times.mean()), 1)
    return {"tokens_per_sec": middle, "mean_tokens_per_sec": mean, "quartiles": [low, high]}


def measure(
    family: str,
    depth: int,
    micro_bsz: int,
    context: int,
    steps: int,
    warmup: int,
    batch: int,
    options: dict[str, Any],
    profile: int = 0,
    shared: str | None = None,
) -> dict[str, Any]:
    """One row of the table, measured in this process, or in all that torchrun started; the main one has all of it.

    shared: a folder for data and run that all processes see, where there are several.
    """
    ranks = world_size()
    batch = max(batch // (ranks * micro_bsz * context), 1) * ranks * micro_bsz * context
    with nullcontext(shared) if shared else tempfile.TemporaryDirectory() as folder:
        if not shared or os.environ["RANK"] == "0":  # the others read it after they have joined
            tokens = np.random.default_rng(0).integers(0, VOCAB, 16 * batch + 1).astype(np.uint16)
            write_shard(Path(folder) / "train_0000000000.bin", tokens)
        run = RunConfig(
            train_data_dir=folder,
            out_dir=folder,
            train_model=family,
            depth=depth,
            ctx_len=context,
            micro_bsz=micro_bsz,
            total_bsz=batch,
            max_tokens=batch * (steps + warmup + (profile > 0)),
            vocab_size=VOCAB,
            base_hps=BaseHyperparameters(warmup_tokens=0),
            **{"train_name": "mup", **options},
        )
        runtime = start_runtime(precision=run.precision, shards=run.shard_group)
        runtime.barrier()
        cache = CompileCache(run.compile_cache, runtime.device)
        cache.open(runtime.barrier)
        resolved = resolve_run(run, ranks)
        trainer = Trainer(resolved, runtime)
        if runtime.is_main:
            write_archive(resolved)
        report = Reporter(resolved, runtime, trainer.optimizer, trainer.progress, None)
        timer, start, first = StepTimer(), time.perf_counter(), 0.0
        while trainer.progress.step < steps + warmup:
            trainer.step(report)
            timer.mark()
            if trainer.progress.step == 1:  # logged, so the device is done with it
                first = time.perf_counter() - start
        times = timer.seconds()[warmup:]
        found: dict[str, Any] = {}
        if profile:
            found = where_and_overlap(lambda: trainer.step(report), profile)
        cache.keep()
        trainer.loader.close()
        report.close(1, saved=False)
        if not runtime.is_main:
            return {}
        logged = [json.loads(line) for line in (resolved.folder / "metrics.jsonl").read_text().splitlines()]
        memory = max(row.get("system/gpu_memory_peak_gib", 0) for row in logged)
        speed, name = speeds(times, batch), device_name()
        rate, peak = speed["tokens_per_sec"], (peak_flops(name) or 0) * ranks
        return {
            "family": family,
            "depth": depth,
            "context": context,
            "micro_bsz": micro_bsz,
            "recipe": run.fp8_recipe if run.fp8 else "bf16",
            "batch": batch,
            "parameters": trainer.plan.counts["total"],
            **speed,
            "mfu": round(rate * trainer.plan.model_flops_per_token / peak, 4) if peak else None,
            "mfu_palm": round(rate * resolved.palm_flops_per_token / peak, 4) if peak else None,
            "peak_memory_gib": round(memory, 2) if timer.on_gpu else None,
            "estimated_memory_gib": round(sum(resolved.plan.memory.values()) / 2**30, 2) if timer.on_gpu else None,
            "first_step_seconds": round(first, 1),
            "steps": len(times),
            "device": name,
            "torch": torch.__version__,
            "options": options,
            **({"gpus": ranks} if ranks > 1 else {}),
            **found,
        }


HEADER = f"{'model':<24}{'recipe':<20}{'context':>8}{'micro':>6}{'tokens/s':>12}{'mean':>12}{'MFU':>8}{'GiB':>8}"


HEADER += f"{'(estimate)':>11}{'first step':>12}"


def line(r: dict[str, Any]) -> str:
    """One row as text."""
    mfu = f"{r['mfu']:.1%}" if r["mfu"] else "-"
    model = f"{r['family'] + ' d' + str(r['depth']):<24}{r['recipe']:<20}"
    return (
        f"{model}{r['context']:>8}{r['micro_bsz']:>6}{r['tokens_per_sec']:>12,.0f}"
        f"{r['mean_tokens_per_sec']:>12,.0f}{mfu:>8}{r['peak_memory_gib'] or 0:>8.1f}"
        f"{r['estimated_memory_gib'] or 0:>11.1f}{r['first_step_seconds']:>11.1f}s"
    )


def write(rows: list[dict[str, Any]], output: str | None) -> None:
    """All rows so far, so that a later failure loses none."""
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(output), json.dumps(rows, indent=1) + "\n")


def free() -> None:
    """Leave nothing of a row behind for the next one."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    run_command(command_of(main))
